"""Pictures against the official image processor: sizes exact, HD pixels bit for bit, crops within 1e-5."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.image_processing import hd_size, hd_transform, num_image_tokens

from .oracle import GOLDEN, Compare, open_image, read_json, read_tensors

CASES = read_json("image_processor.json")["cases"]
HD_SIZES = read_json("hd_sizes.json")["num_crops"]


@pytest.mark.parametrize("num_crops", HD_SIZES)
def test_hd_size_is_the_official_one(num_crops: str) -> None:
    for width, height, padded_height, padded_width, tokens in HD_SIZES[num_crops]:
        if tokens is None:
            with pytest.raises(RowError) as caught:
                hd_size(width, height, int(num_crops))
            assert caught.value.code is ErrorCode.IMAGE_TOO_NARROW
            continue
        size = hd_size(width, height, int(num_crops))
        assert (size.padded_height, size.padded_width) == (padded_height, padded_width), (width, height)
        assert num_image_tokens(size.rows, size.cols) == tokens, (width, height)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['image']}-{case['num_crops']}")
def test_picture_and_crops_are_the_official_ones(case: dict, close: Compare) -> None:
    pixels = hd_transform(open_image(case["image"]), case["num_crops"])
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["hd_rgb_sha256"]
    assert list(pixels.shape[:2]) == case["image_sizes_hw"]

    crops = pixels_to_crops(torch.from_numpy(pixels))
    assert len(crops) == 1 + case["real_sub_crops"]
    samples = read_tensors("image_processor_samples.safetensors")
    close("crops", crops[:, :, 7::48, 5::48], samples[f"{case['image']}|{case['num_crops']}"], 1e-5)
    for crop, stats in zip(crops.double(), case["crops"], strict=True):
        found = {"mean": crop.mean(), "std": crop.std(), "min": crop.min(), "max": crop.max()}
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: stats[name] for name in found}, abs=1e-5
        )


@pytest.mark.parametrize("name", ["rgb_10x700_nc4", "rgb_48x64_nc4", "rgb_64x48_nc4"])
def test_whole_hd_pictures(name: str) -> None:
    image, num_crops = name.rsplit("_nc", 1)
    with Image.open(GOLDEN / f"hd_{name}.png") as golden:
        want = np.asarray(golden.convert("RGB"))
    np.testing.assert_array_equal(hd_transform(open_image(f"{image}.png"), int(num_crops)), want)


def test_whole_crops(close: Compare) -> None:
    image = open_image("rgb_64x48.png")
    with np.load(GOLDEN / "full_global_rgb_64x48_nc4.npz") as golden:
        crops = pixels_to_crops(torch.from_numpy(hd_transform(image, 4)))
        close("global", crops[0], torch.from_numpy(golden["global_view"]), 1e-5)
    with np.load(GOLDEN / "full_pixel_values_rgb_64x48_nc1.npz") as golden:
        crops = pixels_to_crops(torch.from_numpy(hd_transform(image, 1)))
        close("pixel_values", crops, torch.from_numpy(golden["pixel_values"])[0], 1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize(("width", "height"), [(7, 3), (3, 7), (40, 40)])
def test_every_mode_becomes_whole_crops(mode: str, width: int, height: int) -> None:
    pixels = hd_transform(Image.new(mode, (width, height)), 4, 28)
    size = hd_size(width, height, 4, 28)
    assert pixels.shape == (size.padded_height, size.padded_width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]


side = st.integers(1, 6000)


@settings(deadline=None)
@given(width=side, height=side, num_crops=st.integers(1, 20))
def test_hd_size_holds_its_limits(width: int, height: int, num_crops: int) -> None:
    try:
        size = hd_size(width, height, num_crops)
    except RowError:
        return
    assert 1 <= size.rows * size.cols <= num_crops
    assert (size.padded_width % 336, size.padded_height % 336) == (0, 0)
    assert 0 <= size.padded_height - size.resized_height < 336
    assert 0 <= size.padded_width - size.resized_width < 336
    turned = hd_size(height, width, num_crops)
    assert (turned.rows, turned.cols) == (size.cols, size.rows) or width == height


@settings(deadline=None)
@given(rows=st.integers(1, 16), cols=st.integers(1, 16), tokens=st.integers(1, 12))
def test_tokens_add_up(rows: int, cols: int, tokens: int) -> None:
    local = rows * tokens * (cols * tokens + 1)
    whole = tokens * (tokens + 1)
    assert num_image_tokens(rows, cols, tokens) == local + 1 + whole


@settings(deadline=None)
@given(rows=st.integers(1, 3), cols=st.integers(1, 3), seed=st.integers(0, 9))
def test_crops_are_the_picture_row_by_row(rows: int, cols: int, seed: int) -> None:
    shape = (rows * 28, cols * 28, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    crops = pixels_to_crops(pixels, 28, mean=(0, 0, 0), std=(1, 1, 1))
    for index in range(rows * cols):
        top, left = divmod(index, cols)
        want = pixels[top * 28 : top * 28 + 28, left * 28 : left * 28 + 28].permute(2, 0, 1) / 255
        torch.testing.assert_close(crops[1 + index], want, atol=0, rtol=0)


def test_wrong_pixels_are_refused() -> None:
    for pixels in (torch.zeros(336, 336, 3), torch.zeros(336, 300, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="whole crops of 336"):
            pixels_to_crops(pixels)
    with pytest.raises(ValueError, match="at least 1"):
        hd_size(0, 10, 4)
