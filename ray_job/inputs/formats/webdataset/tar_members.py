"""The members of a tar archive one after the other, from their headers; what is not asked for is passed over.

`tarfile` ends in silence at a damaged header, reads nothing behind the first end mark, and keeps every member it met:
rows would vanish, and memory would grow with them.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray_job.errors import InputError
from ray_job.inputs.formats.text.compressed import Decompressed
from ray_job.storage.heads import read_head
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

BLOCK = 512
_LOCAL_BUFFER_BYTES, _REMOTE_BUFFER_BYTES = 8 * 2**10, 2**20  # a request to a bucket costs as much as a MiB of it
_SKIP_BYTES = 2**20
_MAX_NAME_BYTES = 2**20
_MAX_DIGITS = 18
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive."""

    name: str
    offset: int  # where its headers begin
    data_offset: int
    size: int
    is_file: bool
    is_folder: bool


class BrokenTarError(Exception):
    """The archive cannot be followed from a byte on."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset


class TarReader:
    """Bytes of an archive, asked for from front to back.

    Args:
        location: for messages.
        stream: a `Decompressed`, or a file that can seek.
        size: of the file; None for what is decompressed.
    """

    def __init__(self, location: Location, stream: Any, size: int | None) -> None:
        self._location, self._stream, self._size = location, stream, size
        self._place = 0

    @property
    def can_seek(self) -> bool:
        """Whether reading may begin anywhere."""
        return self._size is not None

    def read(self, offset: int, num_bytes: int) -> bytes:
        """The bytes from an offset on; fewer at the end.

        Raises:
            BrokenTarError: it is compressed, and breaks there.
            InputError: the storage fails.
        """
        if self._size is not None:
            num_bytes = max(0, min(num_bytes, self._size - offset))
        try:
            self._move(offset)
            data = bytes(self._stream.read(num_bytes)) if num_bytes else b""
        except STORAGE_ERRORS as error:
            raise self._failed(error) from None
        self._place += len(data)
        if len(data) < num_bytes:
            self._check_unbroken()
        return data

    def check_end(self, offset: int, name: str) -> None:
        """Checks that the archive goes on until an offset.

        Raises:
            BrokenTarError: it does not.
            InputError: the storage fails.
        """
        end = self._size
        if end is None:
            try:
                self._move(offset)
            except STORAGE_ERRORS as error:
                raise self._failed(error) from None
            end = self._place
        if end < offset:
            self._check_unbroken()
            raise BrokenTarError(offset, f"it ends within {name!r}")

    def _move(self, offset: int) -> None:
        if self._size is not None:
            offset = min(offset, self._size)
            if offset != self._place:
                self._stream.seek(offset)
            self._place = offset
            return
        while self._place < offset:
            passed = len(self._stream.read(min(_SKIP_BYTES, offset - self._place)))
            if not passed:
                return
            self._place += passed

    def _check_unbroken(self) -> None:
        if isinstance(self._stream, Decompressed) and self._stream.cause is not None:
            raise BrokenTarError(self._place, self._stream.cause)

    def _failed(self, error: Exception) -> InputError:
        """Where bytes are stored as they are, and not decoded, it is the storage that fails."""
        return InputError(f"{self._location}: cannot be read: {reason(error)}. Run the job again")


@contextmanager
def open_tar(location: Location) -> Iterator[TarReader]:
    """An archive, compressed or not.

    Raises:
        InputError: it cannot be opened.
    """
    head = read_head(location, 4)
    codec = next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)
    if codec is not None:
        with _decompressed(location, codec) as stream:
            yield TarReader(location, stream, None)
        return
    with open_input(location) as handle:
        buffered = io.BufferedReader(handle, _LOCAL_BUFFER_BYTES if location.is_local else _REMOTE_BUFFER_BYTES)
        yield TarReader(location, buffered, handle.size())
        buffered.detach()


def _decompressed(location: Location, codec: str) -> Decompressed:
    try:
        return Decompressed(location, codec)
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: cannot be opened: {reason(error)}. Run the job again") from None


def iter_members(reader: TarReader, offset: int = 0, stop: int | None = None) -> Iterator[Member]:
    """The members whose headers begin from one offset to before another.

    What stands behind an end mark is read too: archives are joined by writing one behind the other.

    Raises:
        BrokenTarError: a header is damaged, a member goes on beyond the end, or the end mark is missing.
    """
    name, size, start = None, None, offset  # as told by headers before the member's own
    is_ended = False
    while stop is None or start < stop:
        block = reader.read(offset, BLOCK)
        if len(block) < BLOCK and is_ended:
            return
        if not block.strip(b"\0") and len(block) == BLOCK:
            is_ended, offset = True, offset + BLOCK
            start = offset
            continue
        info = _header(block, offset)
        is_ended = False
        length = info.size if size is None else size
        if length < 0:  # or the walk would go back, and in a circle
            raise BrokenTarError(start, f"{info.name!r} has a size below zero")
        data, offset = offset + BLOCK, offset + BLOCK + -(-length // BLOCK) * BLOCK
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name = _text(reader.read(data, _bounded(length, data)))
        elif info.type in _PAX:
            records = _pax_records(reader.read(data, _bounded(length, data)))
            name = _text(records[b"path"]) if b"path" in records else name
            size = _size(records[b"size"], start) if b"size" in records else size
        elif info.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            shown = info.name if name is None else name
            is_file, is_folder = info.type in _FILES, info.type == tarfile.DIRTYPE
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise BrokenTarError(start, f"{shown!r} is stored with holes, which is not read")
            yield Member(shown, start, data, length, is_file, is_folder)
            reader.check_end(data + length, shown)
            name, size, start = None, None, offset


def _header(block: bytes, offset: int) -> tarfile.TarInfo:
    if not block:
        raise BrokenTarError(offset, "its end mark is missing, so it may be cut short")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BrokenTarError(offset, f"no header: {error}") from None


def _bounded(length: int, offset: int) -> int:
    if length > _MAX_NAME_BYTES:
        raise BrokenTarError(offset, f"a name of {length} bytes")
    return length


def _size(digits: bytes, offset: int) -> int:
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise BrokenTarError(offset, "a size that is no number")
    return int(digits)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="surrogateescape")


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """`length key=value` lines; the length counts all of the line."""
    records, place = {}, 0
    while found := _PAX_RECORD.match(data, place):
        end = place + int(found[1])
        records[found[2]] = data[found.end() : end - 1]
        place = max(end, found.end())
    return records
