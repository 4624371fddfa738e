"""What is wrong with bytes that no picture could be made of."""

from __future__ import annotations

from PIL import UnidentifiedImageError

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.signatures import described
from ray_job.inputs.pictures.truncated import is_truncated

_FEW_BYTES = 16


def damaged(data: bytes, error: Exception) -> RowError:
    """The row's error for what a decoder raised: what the bytes are instead, that they end too early, or its words."""
    what = described(data)
    if what is not None:
        return RowError(ErrorCode.IMAGE_UNREADABLE, what)
    if "unknown pixel mode" in str(error) and not is_truncated(data, error):
        return RowError(
            ErrorCode.IMAGE_UNREADABLE,
            "the picture is a TIFF of pixels that are not read, such as floats of 64 bits or colours of 32; convert it "
            "to 8 or 16 bits first",
        )
    text = f"{str(error)[:200] or type(error).__name__}"
    if is_truncated(data, error):
        return RowError(ErrorCode.IMAGE_TRUNCATED, f"the picture ends too early, after {len(data)} bytes: {text}")
    if isinstance(error, UnidentifiedImageError):
        begins = f"; it begins with {data[:8]!r}" if len(data) >= _FEW_BYTES else f", and of {len(data)} bytes only"
        return RowError(ErrorCode.IMAGE_UNREADABLE, f"{error}{begins}")
    return RowError(ErrorCode.IMAGE_UNREADABLE, f"the picture is damaged: {text}")
