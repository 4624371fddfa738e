"""Picture tokens from sizes alone, sizes of pages, and pictures of odd shapes, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_job.errors import ErrorCode, ModelError, RowError
from ray_job.models.auto.processor import LibraryProcessor
from tests.models.auto.conversations import ours

_PREPARED = {"idefics3", "internvl", "internvl_qwen3", "mistral3", "smolvlm"}
_SIDES = (1, 7, 28, 31, 56, 57, 100, 150, 333, 800)


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 120, 200))


def test_which_families_count_by_size(family: Path) -> None:
    assert ours(family).counts_by_size == (family.name not in _PREPARED)
    assert (ours(family).placeholder(100, 60) is None) == (family.name in _PREPARED)


def test_a_placeholder_by_size_is_that_of_the_prepared_picture(family: Path) -> None:
    processor = ours(family)
    for width in _SIDES:
        for height in _SIDES:
            if max(width, height) > most_narrow(family) * min(width, height):
                continue
            expected = processor.prepare(blank(width, height)).placeholder
            assert processor.placeholder(width, height) in (expected, None), (width, height)


def most_narrow(folder: Path) -> int:
    """One side of a picture as a multiple of the other. Mistral's pictures here have 112 pixels at most."""
    return 100 if folder.name == "mistral3" else 200


@pytest.mark.parametrize("size", [(1, 10000), (10000, 1), (1, 201), (3000, 2)])
def test_a_picture_too_narrow_is_the_rows_error(family: Path, size: tuple[int, int]) -> None:
    for attempt in (lambda: ours(family).prepare(blank(*size)), lambda: ours(family).placeholder(*size)):
        with pytest.raises(RowError, match="crop the picture") as caught:
            attempt()
        assert caught.value.code == ErrorCode.IMAGE_TOO_NARROW
    with pytest.raises(RowError):
        ours(family).page_size(*size)


def test_odd_pictures_are_prepared(family: Path) -> None:
    most = most_narrow(family)
    for size in ((1, 1), (1, most), (most, 1), (3000, 2000)):
        prepared = ours(family).prepare(blank(*size))
        assert prepared.placeholder.num_tokens > 0
        assert all(array.size for array in prepared.arrays.values())


def test_what_the_image_processor_cannot_read_is_the_rows_error(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(RowError, match="the model's image processor fails") as caught:
        ours(checkpoint("mistral3")).prepare(blank(1, 200))
    assert caught.value.code == ErrorCode.IMAGE_TOO_NARROW


@pytest.mark.parametrize(("ratio", "scale"), [(1.0, 2), (1.414, 3), (2.5, 2), (6.0, 3)])
def test_a_page_drawn_larger_gives_no_more(family: Path, ratio: float, scale: int) -> None:
    """The same arrays' shapes and tokens as a page of that shape drawn two or three times as large."""
    processor = ours(family)
    for sides in {(ratio, 1.0), (1.0, ratio)}:
        width, height = processor.page_size(*sides)
        found = processor.prepare(blank(width, height))
        larger = processor.prepare(blank(scale * width, scale * height))
        assert larger.placeholder == found.placeholder
        assert {name: array.shape for name, array in larger.arrays.items()} == {
            name: array.shape for name, array in found.arrays.items()
        }
        assert width / height == pytest.approx(sides[0] / sides[1], rel=0.03)


def test_no_page_is_drawn_without_need(family: Path) -> None:
    """A square page has few pixels more than the model keeps."""
    width, height = ours(family).page_size(1, 1)
    pixels = ours(family).prepare(blank(800, 800)).arrays["pixel_values"].size / 3
    assert width * height <= 1.4 * pixels


def test_no_picture_takes_more_than_the_most(family: Path) -> None:
    counts = [
        ours(family).prepare(blank(*size)).placeholder.num_tokens for size in ((800, 800), (900, 300), (300, 900))
    ]
    assert max(counts) == ours(family).max_image_tokens


def test_whole_numbers_are_the_pictures_own(family: Path) -> None:
    """A picture in one colour stays in it, up to a step: nothing was scaled, and nothing was shifted."""
    pixels = ours(family).prepare(blank(112, 112)).arrays["pixel_values"]
    assert pixels.dtype == np.uint8
    by_channel = pixels.reshape(len(pixels), 3, -1) if pixels.ndim == 2 else np.moveaxis(pixels, -3, 1)
    for channel, value in enumerate((90, 120, 200)):
        assert abs(int(np.median(by_channel[:, channel])) - value) <= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2_5_vl", {"max_pixels": 28 * 28 * 4}),
        ("qwen3_vl", {"size": {"shortest_edge": 1024, "longest_edge": 8192}}),
        ("smolvlm", {"do_image_splitting": False}),
        ("internvl", {"crop_to_patches": False}),
        ("llava_next", {"image_grid_pinpoints": [[56, 56]]}),
        ("gemma3", {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 28, "pan_and_scan_max_num_crops": 2}),
        ("mistral3", {"size": {"longest_edge": 56}}),
    ],
)
def test_options_change_a_pictures_tokens(
    checkpoint: Callable[[str], Path], name: str, options: dict[str, object]
) -> None:
    limited = LibraryProcessor.from_pretrained(checkpoint(name), options)
    size = (300, 130)
    assert (
        limited.prepare(blank(*size)).placeholder.num_tokens
        != ours(checkpoint(name)).prepare(blank(*size)).placeholder.num_tokens
    )
    for size in ((300, 130), (130, 300), (60, 60)):
        assert limited.placeholder(*size) in (limited.prepare(blank(*size)).placeholder, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixls": 1000}, r"max_pixls: no option of Qwen2VLImageProcessorPil; it has .*max_pixels"),
        ({"do_normalize": False}, "do_normalize: no option"),
        ({"patch_size": "wide"}, "patch_size"),
        ({"max_pixels": -5}, "max_pixels"),
    ],
)
def test_options_that_are_none(checkpoint: Callable[[str], Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LibraryProcessor.from_pretrained(checkpoint("qwen2_5_vl"), options)
