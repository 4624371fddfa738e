"""The pictures of neighbouring rows: which there are, and their encoded bytes, fetched side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from ray_job.errors import RowError
from ray_job.inputs.documents.references import names_document
from ray_job.inputs.pictures.decode import pictures_of
from ray_job.inputs.pictures.fetching import PictureFetcher, reference_of
from ray_job.inputs.pictures.references import read_picture
from ray_job.inputs.pictures.web import WebSession
from ray_job.inputs.source import Source
from ray_job.prompts.messages import read_turns, shown_pictures
from ray_job.rows import READ_ERROR
from ray_job.spec import JobSpec
from ray_job.stages import frames
from ray_job.stages.pages import is_read_in_pieces


class RowPictures:
    """Pictures of rows that are prepared one after the other; while open, they are fetched ahead.

    Args:
        rows: values of `prepare.row_values`.
        spec: says from where, and how many at once.
        source: tells which columns hold pictures.
        headers_only: documents are not fetched whole.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], spec: JobSpec, source: Source, headers_only: bool = False
    ) -> None:
        self._closing = ExitStack()
        web = self._closing.enter_context(WebSession(spec.input.allow_hosts, spec.limits))
        self._read = partial(picture_bytes, spec=spec, source=source, web=web)
        references = [_references(row, spec, source) for row in rows]
        if headers_only:
            references = [[each for each in row if not is_read_in_pieces(each)] for row in references]
        has_documents = any(names_document(each) for row in references for each in row)
        largest = max(spec.limits.max_image_bytes, spec.documents.max_document_bytes * has_documents)
        self._fetcher = PictureFetcher(references, self._read, spec.limits.max_fetches, max_image_bytes=largest)
        self._closing.enter_context(self._fetcher)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.close()

    def bytes_of(self, value: Any) -> bytes:
        """The encoded bytes of a picture as a row has it.

        Raises:
            RowError: as `read_picture`.
        """
        reference = reference_of(value)
        if reference is not None and self._fetcher.knows(reference):
            return self._fetcher.bytes_of(reference)
        return self._read(value)

    def done(self, row: int) -> None:
        """Lets go of what only this row needed, given by its place."""
        self._fetcher.done(row)


def picture_bytes(value: Any, spec: JobSpec, source: Source, web: WebSession | None = None) -> bytes:
    """The encoded bytes of one of a row's pictures, from where the job may read. Raises RowError as `read_picture`."""
    allow_hosts = spec.input.allow_hosts
    return read_picture(
        value,
        root=source.image_root,
        limits=spec.limits,
        allow_hosts=allow_hosts,
        web=web,
        max_document_bytes=spec.documents.max_document_bytes,
    )


def picture_values(row: Mapping[str, Any], source: Source) -> list[Any]:
    """A row's pictures in order, as the row has them; each is for `picture_bytes`.

    Raises:
        RowError: the row's messages are malformed, or show more pictures than there are.
    """
    messages_column = source.prompt.messages_column
    others = pictures_of(row, source.image_columns)
    if messages_column is None or row.get(messages_column) is None:
        return others
    turns = read_turns(row[messages_column], source.prompt.image_tag, len(others))
    return shown_pictures(turns, others)


def _references(row: Mapping[str, Any], spec: JobSpec, source: Source) -> list[str]:
    """What must be fetched for a row: nothing where it fails before."""
    if row.get(READ_ERROR) is not None:
        return []
    try:
        values = picture_values(row, source)
    except RowError:
        return []
    if len(values) > spec.limits.max_images:
        return []
    fetched = (value for value in values if not frames.is_read_in_pieces(value))
    return [reference for reference in map(reference_of, fetched) if reference is not None]
