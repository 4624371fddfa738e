"""How a text file is stored: its compression and encoding, how rows stand in it, and its bytes as UTF-8.

Compression and a byte order mark are told by the first bytes, whatever the file is called.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from ray_job.errors import InputError
from ray_job.inputs.detection import HEAD_BYTES, by_content, compression_of, decompressed, encoding_of
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.text.compressed import Decompressed
from ray_job.storage.heads import read_head
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

Framing = Literal["lines", "items", "table"]
UTF_8 = "utf-8"
MARKING = "ray_job.marked"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file whose rows can be found."""

    location: Location
    name: str  # relative to the input
    framing: Framing  # JSON lines, JSON objects anywhere, CSV
    codec: str | None = None  # of its compression, as Arrow calls it
    encoding: str = UTF_8
    delimiter: str = ","  # of a table …
    header: tuple[str, ...] = ()  # … and the names of its columns
    first_row: int = 0  # offset of its first row; 0 where there is no header

    @property
    def is_whole(self) -> bool:
        """Whether it can only be read from its beginning: offsets are then those of its text in UTF-8."""
        return self.codec is not None or self.encoding != UTF_8

    @property
    def unit(self) -> str:
        """What rows are counted in."""
        return "item" if self.framing == "items" else "line"


def look_into(file: InputFile, framing: Framing, encoding: str | None) -> TextFile:
    """Finds out how a file is stored.

    Args:
        file: of a text format.
        framing: `lines` becomes `items` where its beginning says so.
        encoding: the spec's, for files without a byte order mark.

    Raises:
        InputError: it cannot be read, or holds no text.
    """
    head = read_head(file.location, HEAD_BYTES)
    kind = by_content(head)
    if kind in ("parquet", "images", "arrow", "documents", "webdataset"):
        raise InputError(f"{file.location}: holds {kind}, whatever its name says; set input.format: {kind}, or move it")
    codec = compression_of(head)
    if codec is not None:
        head = decompressed(head, codec)
    found = TextFile(file.location, file.name, framing, codec, encoding_of(head) or encoding or UTF_8)
    if framing == "lines" and _has_items(head.decode(found.encoding, errors="ignore")):
        found = replace(found, framing="items")
    return found


@contextlib.contextmanager
def open_text(file: TextFile, start: int = 0, end: int | None = None) -> Iterator[TextStream]:
    """A file's bytes in UTF-8: all of them where it `is_whole`, else from `start` to before `end`.

    Raises:
        InputError: it cannot be read. Where it is compressed and breaks, the stream ends instead, and says so.
    """
    location = file.location
    try:
        if file.codec is not None:
            with Decompressed(location, file.codec) as stream:
                yield TextStream(stream, file.encoding)
        elif file.is_whole or end is None:
            with location.filesystem.open_input_stream(location.path, compression=None) as stream:
                yield TextStream(stream, file.encoding)
        else:
            with open_input(location) as handle:
                yield TextStream(handle.get_stream(start, end - start), file.encoding)
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: cannot be read: {reason(error)}") from None


class TextStream:
    """A stream as UTF-8. What cannot be decoded becomes bytes that are no UTF-8 either.

    Half of a surrogate pair stands for it until then: all that follows is decoded, whatever a codec makes of a mistake.
    """

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = None if encoding == UTF_8 else codecs.getincrementaldecoder(encoding)(MARKING)
        self._is_done = False
        self.last_byte = b""  # of what was read

    @property
    def damage(self) -> str | None:
        """What is wrong where a compressed file breaks, once that is reached."""
        return self._stream.damage if isinstance(self._stream, Decompressed) else None

    def read(self, size: int) -> bytes:
        """About so many bytes; none at the end."""
        data = bytes(self._stream.read(size)) if self._decoder is None else self._decoded(size)
        self.last_byte = data[-1:] or self.last_byte
        return data

    def _decoded(self, size: int) -> bytes:
        assert self._decoder is not None
        while not self._is_done:
            data = self._stream.read(size)
            self._is_done = not data
            text = self._decoder.decode(data, final=self._is_done)
            if text:
                return text.encode("utf-8", "surrogatepass")
        return b""


def _marked(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(MARKING, _marked)


def _has_items(text: str) -> bool:
    """Whether a JSON text, of which this is the beginning, has objects elsewhere than one to a line."""
    text = text.lstrip("\ufeff \t\r\n\x1e")
    if text[:1] == "[":
        return text[1:].lstrip()[:1] in ("{", "]", "")
    first, newline, _ = text.partition("\n")
    if text[:1] != "{":
        return False
    decoder = json.JSONDecoder()
    try:
        _, end = decoder.raw_decode(first)
        return bool(first[end:].strip())
    except (ValueError, RecursionError):
        pass
    try:  # an object over several lines
        decoder.raw_decode(text)
        return True
    except (ValueError, RecursionError):
        return bool(newline) and first.rstrip() in ("{", "[")
