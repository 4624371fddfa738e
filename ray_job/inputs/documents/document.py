"""A document that a process has open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Ask: TypeAlias = Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]
"""Sends the process a request and takes its answer."""


class OpenDocument:
    """Its pages, counted from 1.

    Args:
        ask: the process that has it open.
        found: what opening it answered.

    Every call raises RowError: PAGE_UNREADABLE, DEADLINE; OUT_OF_MEMORY where trying again may help.
    """

    def __init__(self, ask: Ask, found: Mapping[str, Any]) -> None:
        self._ask = ask
        self.num_pages = int(found["num_pages"])
        self.is_pdf = found["kind"] == "pdf"

    def size(self, page: int) -> tuple[float, float]:
        """Width and height of a page as shown: points of a PDF, pixels of a TIFF."""
        answer, _ = self._ask({"do": "size", "page": page})
        width, height = answer["size"]
        return width, height

    def has_its_end(self, page: int) -> bool:
        """Whether the file of a TIFF holds all of a page; of a PDF only drawing it tells."""
        return bool(self._ask({"do": "size", "page": page})[0]["is_whole"])

    def draw(self, page: int, width: int, height: int) -> bytes:
        """A page of a PDF as RGB, `height` × `width` × 3."""
        return self._ask({"do": "draw", "page": page, "width": width, "height": height})[1]

    def frame(self, page: int) -> int:
        """Which of Pillow's frames a page of a TIFF is."""
        return int(self._ask({"do": "draw", "page": page})[0]["frame"])

    def text(self, page: int) -> str:
        """A page's own text; none of a scan."""
        return self._ask({"do": "text", "page": page})[1].decode()
