"""Pages of documents among a row's pictures: which they are, and how they become pictures for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.drawing import PageDrawer, PixelSize
from ray_job.inputs.documents.passwords import Passwords
from ray_job.inputs.documents.references import is_pdf, names_document, page_of, page_reference, split_reference
from ray_job.inputs.pictures.fetching import reference_of
from ray_job.inputs.pictures.references import place_of
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.inputs.source import Source
from ray_job.prompts.messages import DOCUMENT
from ray_job.spec import JobSpec
from ray_job.storage.places import parse_uri

_WEB = ("http", "https")


def is_read_in_pieces(reference: str) -> bool:
    """Whether a plan looks into a document where it lies, instead of fetching it whole."""
    return names_document(reference) and (parse_uri(reference) or ("",))[0] not in _WEB


class RowPages:
    """Draws the pages that rows name.

    Args:
        spec: passwords, limits.
        source: says where relative paths start.
        pixel_size: what the model can use of a page.
    """

    def __init__(self, spec: JobSpec, source: Source, pixel_size: PixelSize) -> None:
        self._column = spec.documents.password_column
        self._passwords = Passwords.of(spec.documents)
        self._drawer = PageDrawer(spec.documents, spec.limits, PictureRules.of(spec.input), pixel_size)
        self._root = source.image_root

    def holds(self, data: bytes, value: Any) -> bool:
        """Whether a picture's value, and the bytes it led to, are a page of a document."""
        return page_of(value) is not None or is_pdf(data)

    def picture(self, data: bytes, value: Any, row: Mapping[str, Any]) -> Image.Image:
        """The page as RGB. Raises RowError as `PageDrawer.picture`."""
        return self._drawer.picture(data, page_of(value), self._to_try(row))

    def size(self, data: bytes, value: Any, row: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height of that picture in pixels; nothing is drawn."""
        return self._drawer.size(data, page_of(value), self._to_try(row))

    def expanded(
        self, values: Sequence[Any], row: Mapping[str, Any], read: Callable[[Any], bytes], max_pictures: int
    ) -> tuple[list[Any], list[int]]:
        """A row's pictures with each whole document (`{document: …}`) as its pages, and how many each value became.

        Args:
            values: the row's pictures, as the row has them.
            row: it.
            read: the bytes of one.
            max_pictures: of a row.

        Raises:
            RowError: TOO_MANY_IMAGES, or as `open_document` and `read`.
        """
        found: list[Any] = []
        counts = []
        for value in values:
            if not isinstance(value, Mapping) or set(value) != {DOCUMENT}:
                pages = [value]
            else:
                data = read(value[DOCUMENT])
                num_pages = self._drawer.num_pages(data, self._to_try(row))
                if num_pages > max_pictures:
                    text = f"a document of {num_pages} pages; limits.max_images is {max_pictures}"
                    raise RowError(ErrorCode.TOO_MANY_IMAGES, text)
                names = [page_reference(DOCUMENT, page) for page in range(1, num_pages + 1)]
                pages = [{"bytes": data, "path": name} for name in names]
            found += pages
            counts.append(len(pages))
        return found, counts

    def digest(self, data: bytes, value: Any) -> bytes:
        """Equal for equal pages of equal documents: 16 bytes."""
        return self._drawer.digest(data, page_of(value))

    def header_of(self, value: Any, row: Mapping[str, Any]) -> tuple[bytes, tuple[int, int]] | None:
        """The digest and size of a page, without reading its document whole; None for any other picture.

        Raises:
            RowError: as `PageDrawer.size_in`.
        """
        reference = reference_of(value)
        if reference is None or not is_read_in_pieces(reference):
            return None
        page = page_of(value)
        location = place_of(split_reference(reference)[0], self._root)
        try:
            size = self._drawer.size_in(location, page, self._to_try(row))
        except RowError as error:
            if page is None and error.code == ErrorCode.DOCUMENT_UNREADABLE:
                return None  # a picture, whatever it is called, or what decoding will name
            raise
        return hashlib.blake2b(f"{location}#{page}".encode(errors="replace"), digest_size=16).digest(), size

    def _to_try(self, row: Mapping[str, Any]) -> list[str | None]:
        return self._passwords.to_try(None if self._column is None else row.get(self._column))
