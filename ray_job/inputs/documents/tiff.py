"""TIFF files of several pages, by Pillow. Thumbnails, overviews and masks beside a picture are no pages of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from itertools import count
from typing import Any

from PIL import Image, UnidentifiedImageError

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.references import CHOOSE_A_PAGE

_NEW_SUBFILE_TYPE = 254
_REDUCED, _MASK = 1, 4
_MANY_FRAMES = 256
_PIXELS = ((273, 279), (324, 325))  # tags of where strips and tiles are, and of how many bytes
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffFile:
    """An open TIFF.

    Args:
        file: seekable.

    Raises:
        RowError: DOCUMENT_UNREADABLE, DOCUMENT_EMPTY.
    """

    def __init__(self, file: Any) -> None:
        try:
            self._num_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd metadata
                self._image = Image.open(file, formats=["TIFF"])
                self._frames = page_frames(self._image)
        except Exception as error:  # decoders raise almost anything on damaged bytes
            what = type(error).__name__ if isinstance(error, UnidentifiedImageError) else str(error)
            raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"the TIFF is damaged: {what}") from None
        self.num_pages = len(self._frames)
        if not self.num_pages:
            raise RowError(ErrorCode.DOCUMENT_EMPTY, "the TIFF has no pages")

    def close(self) -> None:
        """Lets go of it."""
        self._image.close()

    def size(self, page: int) -> tuple[float, float]:
        """Width and height in pixels. Raises RowError PAGE_UNREADABLE."""
        self._image.seek(self.frame(page))
        width, height = self._image.size
        return width, height

    def has_its_end(self, page: int) -> bool:
        """Whether the file reaches as far as the page's pixels do. Raises RowError PAGE_UNREADABLE."""
        self._image.seek(self.frame(page))
        tags: Mapping[int, Any] = getattr(self._image, "tag_v2", {})
        pairs = ((tags.get(starts, ()), tags.get(counts, ())) for starts, counts in _PIXELS)
        ends = [start + count for starts, counts in pairs for start, count in zip(starts, counts, strict=False)]
        return bool(max(ends, default=0) <= self._num_bytes)

    def frame(self, page: int) -> int:
        """Which of Pillow's frames it is. Raises RowError PAGE_UNREADABLE."""
        if page > self.num_pages:
            raise RowError(ErrorCode.PAGE_UNREADABLE, f"there is no page {page}; the document has {self.num_pages}")
        return self._frames[page - 1]

    def text(self, page: int) -> str:
        """A scan has none. Raises RowError PAGE_UNREADABLE."""
        self.frame(page)
        return ""


def page_frames(image: Any, max_pages: int | None = None) -> list[int]:
    """The frames of an open TIFF that are pages; with `max_pages` it looks no further than it must to find so many."""
    frames: list[int] = []
    for index in count():
        try:
            image.seek(index)
        except EOFError:
            break
        if not image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _MASK):
            frames.append(index)
        if max_pages is not None and (len(frames) == max_pages or index >= _MANY_FRAMES):
            break
    return frames


def turn_to(image: Any, frame: int | None, max_pixels: int | None) -> None:
    """Turns an open picture to a frame; without one, a TIFF to its page, which must be the only one.

    No page is left out without a word. Pictures of other formats stay as they are.

    Raises:
        RowError: PAGE_UNREADABLE for a TIFF of several pages, IMAGE_TOO_LARGE.
    """
    if image.format != "TIFF":
        return
    pages = page_frames(image, max_pages=2) if frame is None else [frame]
    if len(pages) > 1:
        raise RowError(ErrorCode.PAGE_UNREADABLE, f"a TIFF of several pages; {CHOOSE_A_PAGE}")
    image.seek(pages[0] if pages else 0)
    if max_pixels is not None and image.width * image.height > max_pixels:
        text = f"the page has {image.width} × {image.height} pixels; limits.max_pixels is {max_pixels}"
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, text)
