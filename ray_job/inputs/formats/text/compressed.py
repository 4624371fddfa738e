"""A compressed file as a stream of what is in it, up to where it breaks, if it does."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from ray_job.storage.places import STORAGE_ERRORS, Location, reason

DAMAGED = "the compressed file is damaged or cut short here"
_STEP_BYTES = 4096
_SKIP_BYTES = 2**20
_OF_THE_FILE = re.compile(r"truncated compressed stream|\w+ (inflate|decompress\w*) failed", re.IGNORECASE)


class Decompressed(AbstractContextManager["Decompressed"]):
    """Every byte before the place where a file breaks, and what is wrong there.

    Arrow gives nothing of a read that meets the break, so reads are short, and one byte long at the break. What the
    storage fails at is raised as it is: trying again may help there.

    Args:
        location: of the file.
        codec: of its compression, as Arrow calls it.
    """

    def __init__(self, location: Location, codec: str) -> None:
        self._location, self._codec = location, codec
        self._open = ExitStack()
        self._stream = self._opened()
        self._place = 0
        self.cause: str | None = None  # what is wrong there, once what is before it is read

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def damage(self) -> str | None:
        """What its row says of the break, once what is before it is read."""
        if self.cause is None:
            return None
        return f"{DAMAGED} ({self.cause}). What may have followed is not read; compress or fetch it again"

    def read(self, size: int) -> bytes:
        """At most so many bytes, none at the end or at the break."""
        data = bytearray()
        while len(data) < size and self.cause is None:
            step = self._step(min(_STEP_BYTES, size - len(data)))
            if not step:
                break
            data += step
        return bytes(data)

    def _step(self, size: int) -> bytes:
        try:
            data = bytes(self._stream.read(size))
        except STORAGE_ERRORS as error:
            if not _OF_THE_FILE.search(str(error)):
                raise
            data = self._up_to_the_break(size)
        self._place += len(data)
        return data

    def _up_to_the_break(self, size: int) -> bytes:
        """What a failed read of this size leaves out."""
        self._stream = self._opened()
        left = self._place
        while left and (passed := len(self._stream.read(min(_SKIP_BYTES, left)))):
            left -= passed
        data = bytearray()
        try:
            while len(data) < size and (byte := self._stream.read(1)):
                data += byte
        except STORAGE_ERRORS as error:
            if not _OF_THE_FILE.search(str(error)):
                raise
            self.cause = reason(error)
        return bytes(data)

    def _opened(self) -> Any:
        self._open.close()
        location = self._location
        return self._open.enter_context(location.filesystem.open_input_stream(location.path, compression=self._codec))
