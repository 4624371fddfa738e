"""Features of pictures, each computed once: those that running rows hold, and the last others within a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from weakref import WeakValueDictionary

from torch import Tensor


class VisionCache:
    """From a picture's digest to its features.

    Args:
        max_bytes: of features kept beyond the rows that use them, least recently used first to go; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._in_use: WeakValueDictionary[bytes, Tensor] = WeakValueDictionary()

    def get(self, digest: bytes) -> Tensor | None:
        """The features (T, D), if any row holds them or they are kept."""
        if digest in self._kept:
            self._kept.move_to_end(digest)
        return self._in_use.get(digest)

    def put(self, digest: bytes, features_TD: Tensor) -> Tensor:
        """Takes features in; the tensor that rows should hold."""
        if features_TD.untyped_storage().nbytes() > features_TD.nbytes:
            features_TD = features_TD.clone()  # a view would keep the features of its whole batch alive
        self._in_use[digest] = features_TD
        before = self._kept.pop(digest, None)
        self._num_bytes -= before.nbytes if before is not None else 0
        if features_TD.nbytes <= self._max_bytes:
            self._kept[digest] = features_TD
            self._num_bytes += features_TD.nbytes
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return features_TD

    def clear(self) -> None:
        """Forgets all that no row holds."""
        self._kept.clear()
        self._num_bytes = 0
