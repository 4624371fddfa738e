"""Features are there while a row holds them, and the last used of the others within the budget."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from ray_job.engine.vision_cache import VisionCache

BYTES = 3 * 5 * 4


def features(number: int) -> Tensor:
    return torch.full((3, 5), float(number))


def kept(cache: VisionCache, digests: str) -> str:
    """Those of the digests whose features are there, asked for without using any of them."""
    gc.collect()
    return "".join(digest for digest in digests if digest.encode() in cache._kept)


def test_the_least_recently_used_go_first() -> None:
    cache = VisionCache(3 * BYTES)
    for number, digest in enumerate("abc"):
        cache.put(digest.encode(), features(number))
    assert kept(cache, "abc") == "abc"
    assert torch.equal(cache.get(b"a"), features(0))  # type: ignore[arg-type]
    cache.put(b"d", features(3))
    assert kept(cache, "abcd") == "acd"
    cache.put(b"e", features(4))
    assert kept(cache, "abcde") == "ade"
    assert cache.get(b"b") is None
    assert cache.get(b"nothing") is None


def test_a_row_keeps_what_the_budget_does_not() -> None:
    for max_bytes in (0, BYTES - 1):
        cache = VisionCache(max_bytes)
        held = cache.put(b"a", features(1))
        assert cache.get(b"a") is held
        del held
        gc.collect()
        assert cache.get(b"a") is None


def test_exactly_the_budget_is_kept() -> None:
    cache = VisionCache(BYTES)
    cache.put(b"a", features(1))
    assert kept(cache, "a") == "a"
    cache.put(b"b", features(2))
    assert kept(cache, "ab") == "b"


def test_one_byte_too_many_drives_the_oldest_out() -> None:
    cache = VisionCache(3 * BYTES - 1)
    for number, digest in enumerate("abc"):
        cache.put(digest.encode(), features(number))
    assert kept(cache, "abc") == "bc"


def test_what_is_too_large_to_keep_drives_nothing_out() -> None:
    cache = VisionCache(2 * BYTES)
    cache.put(b"a", features(1))
    cache.put(b"b", torch.zeros(30, 5))
    assert kept(cache, "ab") == "a"


def test_a_view_does_not_keep_its_batch_alive() -> None:
    batch = torch.zeros(10, 3, 5)
    held = VisionCache(0).put(b"a", batch[4])
    assert held.untyped_storage().nbytes() == BYTES
    alone = features(1)
    assert VisionCache(0).put(b"a", alone) is alone, "what is no view is not copied"


def test_clearing_keeps_what_rows_hold() -> None:
    cache = VisionCache(10 * BYTES)
    held = cache.put(b"a", features(1))
    cache.put(b"b", features(2))
    cache.clear()
    gc.collect()
    assert cache.get(b"a") is held
    assert cache.get(b"b") is None
    for number in range(10):
        cache.put(str(number).encode(), features(number))
    assert kept(cache, "0123456789") == "0123456789", "the budget is whole again"


def test_the_same_picture_put_again_counts_once() -> None:
    cache = VisionCache(2 * BYTES)
    cache.put(b"a", features(1))
    for number in range(3):
        cache.put(b"b", features(number))
    assert kept(cache, "ab") == "ab"
