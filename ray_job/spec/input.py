"""Where the rows come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ray_job.spec.section import Section, Strings


class InputSpec(Section):
    """Where the rows come from."""

    path: Strings = Field(
        min_length=1,
        description="File, folder, glob or URI (s3://…, gs://…), or a list of them.",
    )
    format: Literal["auto", "parquet", "images", "jsonl"] = Field(
        "auto", description="`auto` decides by the files' suffixes."
    )
    id_column: str | None = Field(
        None,
        description="Column whose value becomes `row_id`, type unchanged. Default: `custom_id` for JSONL; "
        "otherwise a stable id `relative path#position` is made.",
    )
    image_columns: Strings | None = Field(
        None,
        description="Columns holding pictures, in order: {bytes, path} structs, lists of them, raw bytes, or "
        "paths/URIs. Default: `images` or `image` where the data has it. An empty list: text only.",
    )
    image_root: str | None = Field(
        None, description="Folder that relative picture paths start from and may not leave. Default: the input's."
    )
    allow_hosts: Strings = Field(
        (),
        description="Hosts whose pictures may be fetched by https, as `name` or `name:port`; redirects and private "
        "addresses are refused all the same. Default: nothing is fetched from the web.",
    )
    keep_columns: Strings | None = Field(
        None,
        description="Columns passed through to the output, of any type that Parquet holds; dictionaries as values. "
        "Default: all columns of plain types except the id.",
    )
    pictures: Literal["as_shown", "as_stored"] = Field(
        "as_shown",
        description="What the model sees. `as_shown`: what a viewer shows, turned upright by EXIF, transparency over "
        "`background`, colour profiles applied, deep grey scaled to 8 bits. `as_stored`: the pixels as the official "
        "code takes them, none of that.",
    )
    background: str = Field(
        "white", description="Colour under what is transparent in `as_shown` pictures: a CSS name, `#rrggbb`, `rgb(…)`."
    )
    truncated: Literal["error", "accept"] = Field(
        "error",
        description="A picture that ends too early: an error, or accepted if its decoder can make up the rest; what is "
        "missing is then grey, black or transparent. At least half must be there where the format tells.",
    )
    limit: int | None = Field(None, ge=1, description="Only the first N rows.")

    @field_validator("background")
    @classmethod
    def _a_colour(cls, value: str) -> str:
        _rgb(value)
        return value

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """`background` as red, green and blue, 0 to 255."""
        return _rgb(self.background)


def _rgb(colour: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    found: tuple[int, ...]
    try:
        found = ImageColor.getrgb(colour)
    except ValueError:
        found = ()
    if len(found) != 3:
        raise ValueError(
            f"got {colour[:50]!r}; allowed: a CSS colour without transparency, such as white, #ffffff or rgb(255, 0, 0)"
        )
    return found[0], found[1], found[2]
