"""Pictures through the library's image processor: each alone, its pixels as whole numbers, not yet normalised.

What a picture is to a prompt follows from its size alone in some families, and is counted so while planning; in the
others the library's own count is wrong or absent, and a picture is prepared to know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_job.errors import ErrorCode, ModelError, RowError, first_line
from ray_job.models.auto.normalization import Normalization, normalization_of

PIXELS, _MASK = "pixel_values", "pixel_attention_mask"
# Of the library's processors those whose count by size is right, measured by tests/models/auto/test_picture_sizes.py.
_COUNT_BY_SIZE = {
    "Gemma3Processor",
    "Glm4vProcessor",
    "LlavaNextProcessor",
    "LlavaOnevisionProcessor",
    "LlavaProcessor",
    "PaliGemmaProcessor",
    "Qwen2VLProcessor",
    "Qwen2_5_VLProcessor",
    "Qwen3VLProcessor",
}
_MAX_RATIO = 200  # of a picture's sides; Qwen's own limit, and others resize by the short side alone
_PROBE_SIZES = ((100, 60), (60, 150), (301, 97), (640, 480))
_PAGE_SIDE = 4096  # pixels along the longer side that a page is drawn at, at most
_PAGE_STEPS = 5  # by which it is drawn larger, where that gives more tokens
_RATIOS = (1.0, 1.25, 1.5, 2.0, 3.0)  # at which the picture that takes most tokens is sought


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is written for pictures whose tokens follow from their size: `before`, the picture token, `after`."""

    before: str
    after: str


class PictureProcessor:
    """Prepares pictures for one model.

    Args:
        library: the library's processor.
        image_token: whose places a picture's features take.
        options: of the image processor; it was made with them, and the library's processor may have others of its own.
    """

    def __init__(self, library: Any, image_token: str, options: Mapping[str, Any]) -> None:
        self._library = library
        self._images = library.image_processor
        self._token = image_token
        own = library._merge_kwargs(
            library.valid_processor_kwargs,  # releases before 5.23 want them named
            tokenizer_init_kwargs=library.tokenizer.init_kwargs,
            return_tensors="np",
        )
        # What a processor's class has of its own counts more than what its image processor was made with.
        self._overriding = {name: value for name, value in options.items() if name in own["images_kwargs"]}
        self._scaled: dict[str, Any] = {**own["images_kwargs"], **self._overriding}
        kept = set(self._images.model_input_names) - set(library.unused_input_names)
        self._kept = kept | {PIXELS}
        self._page_pixels = lru_cache(maxsize=64)(self._kept_pixels)

    def prepare(self, image: Image.Image) -> tuple[dict[str, npt.NDArray[Any]], str]:
        """The arrays of one picture, joined with others' along axis 0, and what is written for it.

        Raises:
            RowError: the image processor cannot read a picture of this shape.
        """
        _check_ratio(image.width, image.height)
        try:
            data, text = self._processed(image, self._arguments)
        except MemoryError:
            raise
        except Exception as error:  # whatever arithmetic an odd shape makes fail
            raise RowError(
                ErrorCode.IMAGE_TOO_NARROW,
                f"{image.width} × {image.height} pixels: the model's image processor fails: {first_line(error)}",
            ) from None
        arrays = {name: np.asarray(value) for name, value in data.items() if name in self._kept}
        if self.normalization is not None:
            arrays[PIXELS] = arrays[PIXELS].astype(np.uint8)
        if _MASK in arrays:
            arrays[_MASK] = arrays[_MASK].astype(np.bool_)
        return arrays, text

    def text_of_size(self, width: int, height: int) -> str | None:
        """What is written for a picture of so many pixels; None where only preparing it tells. Raises RowError."""
        _check_ratio(width, height)
        if self._layout is None:
            return None
        return f"{self._layout.before}{self._token * self._count(width, height)}{self._layout.after}"

    @property
    def counts_by_size(self) -> bool:
        """Whether a picture's tokens follow from its size."""
        return self._layout is not None

    @cached_property
    def normalization(self) -> Normalization | None:
        """What is left to do with a prepared picture's pixels; None where they come normalised, since they are no
        whole numbers before."""
        images = self._images
        pixels = np.asarray(self._processed(_blank(*_PROBE_SIZES[0]), self._unscaled)[0][PIXELS])
        if not np.array_equal(pixels, pixels.astype(np.uint8)):
            return None
        return Normalization(
            rescale_factor=float(images.rescale_factor) if images.do_rescale else 1.0,
            mean=normalization_of(images.image_mean) if images.do_normalize else (),
            std=normalization_of(images.image_std) if images.do_normalize else (),
        )

    @cached_property
    def max_tokens(self) -> int:
        """Tokens of the picture that takes most, as far as common ratios of its sides tell."""
        return max(self._num_tokens(*size) for ratio in _RATIOS for size in _both_ways(4 * _PAGE_SIDE, ratio))

    def page_size(self, width: float, height: float) -> tuple[int, int]:
        """Pixels to draw a page at that has sides of this ratio, about as many as the model keeps. Raises RowError."""
        _check_ratio(width, height)
        ratio = round(max(width, height) / min(width, height), 2)
        is_wide = width >= height
        kept = self._page_pixels(ratio, is_wide)
        # A picture may be made square or cut to one, so its short side alone has as many as are kept.
        short = min(math.ceil(math.sqrt(kept)), max(1, int(_PAGE_SIDE / ratio)))
        for _ in range(_PAGE_STEPS):
            long = math.ceil(short * ratio)
            size = (long, short) if is_wide else (short, long)
            if self._layout is None or self._count(*size) == self._count(2 * size[0], 2 * size[1]):
                break
            short = math.ceil(short * 1.1)
        return size

    def _kept_pixels(self, ratio: float, is_wide: bool) -> int:
        """Pixels of a large picture that reach the model."""
        wide, tall = _both_ways(_PAGE_SIDE, ratio)
        size = wide if is_wide else tall
        if self._layout is None:
            return self._num_pixels(self.prepare(_blank(*size))[0])
        arrays, text = self.prepare(_blank(*_PROBE_SIZES[-1]))
        return math.ceil(self._num_pixels(arrays) / text.count(self._token) * self._count(*size))

    def _num_pixels(self, arrays: Mapping[str, npt.NDArray[Any]]) -> int:
        """Of three channels each, all tiles together."""
        pixels = arrays[PIXELS]
        repeated = self._images.temporal_patch_size if pixels.ndim == 2 else 1  # a picture in a table of video patches
        return int(pixels.size // (3 * repeated))

    def _num_tokens(self, width: int, height: int) -> int:
        if self._layout is not None:
            return self._count(width, height)
        scale = max(1.0, max(width, height) / (_PAGE_SIDE / 2))
        return self.prepare(_blank(int(width / scale), int(height / scale)))[1].count(self._token)

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        return self._scaled if self.normalization is None else self._unscaled

    @property
    def _unscaled(self) -> dict[str, Any]:
        return {**self._scaled, "do_rescale": False, "do_normalize": False}

    def _processed(self, image: Image.Image, arguments: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        library = self._library
        images, *_ = library.prepare_inputs_layout(images=[image], text=[library.image_token])
        data, (text,) = library._process_images(images, **arguments)
        return data, text

    def _count(self, width: int, height: int) -> int:
        """Tokens by size, as the library counts them."""
        found = self._library._get_num_multimodal_tokens(image_sizes=[(height, width)], **self._overriding)
        return int(found.num_image_tokens[0])

    @cached_property
    def _layout(self) -> _Layout | None:
        """None where tokens do not follow from the size, by the family or by its options."""
        if type(self._library).__name__ not in _COUNT_BY_SIZE:
            return None
        layouts = set()
        for size in _PROBE_SIZES:
            text = self.prepare(_blank(*size))[1]
            before, *middle, after = text.split(self._token)
            if any(middle) or self._count(*size) != text.count(self._token):
                return None
            layouts.add(_Layout(before, after))
        return layouts.pop() if len(layouts) == 1 else None


def check_options(library: Any, options: Mapping[str, Any]) -> None:
    """Raises ModelError for a name that the image processor does not know, or that is not a user's to change."""
    names = set(library.image_processor.valid_kwargs.__annotations__) - _OWN_OPTIONS
    unknown = sorted(set(options) - names)
    if unknown:
        raise ModelError(
            f"model.processor_options: {', '.join(unknown)}: no option of {type(library.image_processor).__name__}; "
            f"it has {', '.join(sorted(names))}"
        )


# How pixels become numbers is the model's, and what comes back ours.
_OWN_OPTIONS = {
    "data_format",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "image_mean",
    "image_std",
    "input_data_format",
    "rescale_factor",
    "return_row_col_info",
    "return_tensors",
}


def _check_ratio(width: float, height: float) -> None:
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise RowError(
            ErrorCode.IMAGE_TOO_NARROW,
            f"{width:g} × {height:g}: one side is more than {_MAX_RATIO} times the other; crop the picture",
        )


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def _both_ways(longer: int, ratio: float) -> Iterator[tuple[int, int]]:
    shorter = max(1, int(longer / ratio))
    yield longer, shorter
    yield shorter, longer
