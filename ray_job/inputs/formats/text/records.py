"""A record: one row of a text file, as the bytes between two offsets."""

from __future__ import annotations

from dataclasses import dataclass

from ray_job.errors import RowError, Stage
from ray_job.inputs.source import malformed

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a text file: a line, the lines of a CSV row, or an item of a JSON array."""

    number: int  # from 1: of its first line as an editor shows it, or of the item
    start: int  # offset in bytes of its first byte
    end: int  # offset behind its newline
    content: bytes | None  # UTF-8, without the newline; None where it cannot be had
    problem: str | None = None  # why not; None: it is longer than the cap


def located(name: str, unit: str, record: Record, error: RowError) -> RowError:
    """The error with the place of its record in front: `a.csv, line 7: …`."""
    return RowError(error.code, f"{name}, {unit} {record.number}: {error.message}", Stage.READ)


def text_of(content: bytes) -> str:
    """A record's text.

    Raises:
        RowError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        text = f"not UTF-8 at byte {error.start}; if the file has another encoding, set input.encoding"
        raise malformed(text) from None
