"""The file that an isolated process reads: in blocks that it asks its parent for, kept while there is room."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable

BLOCK_BYTES = 64 * 2**10
_MAX_BLOCKS = 256


class BlockFile(io.RawIOBase):
    """A seekable file over blocks.

    Args:
        num_bytes: of the file.
        fetch: the bytes at an offset, as many as asked for; never asked to read beyond the end.
    """

    def __init__(self, num_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._num_bytes = num_bytes
        self._fetch = fetch
        self._place = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()  # the least recently used first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._num_bytes}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: object) -> int:
        """Up to the end of one block would do for Python; native code may take a short read for a failure."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        filled = 0
        while filled < len(view) and self._place < self._num_bytes:
            index, start = divmod(self._place, BLOCK_BYTES)
            piece = self._block(index)[start : start + len(view) - filled]
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._place += len(piece)
        return filled

    def _block(self, index: int) -> bytes:
        block = self._blocks.pop(index, None)
        if block is None:
            offset = index * BLOCK_BYTES
            wanted = min(BLOCK_BYTES, self._num_bytes - offset)
            block = self._fetch(offset, wanted)
            if len(block) != wanted:
                raise OSError("the file is shorter than it was")
            if len(self._blocks) >= _MAX_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks[index] = block
        return block
