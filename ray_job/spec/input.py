"""Where the rows come from."""

from __future__ import annotations

import codecs
from typing import Literal, TypeAlias

from pydantic import Field, field_validator

from ray_job.spec.section import Section, StorageOptions, Strings

Format: TypeAlias = Literal[
    "parquet",
    "images",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "arrow",
    "hf",
    "webdataset",
    "delta",
    "iceberg",
    "lance",
    "documents",
    "video",
]
"""What an input may be made of."""


class InputSpec(Section):
    """Where the rows come from."""

    path: Strings = Field(
        min_length=1,
        description="File, folder, glob or URI (s3://…, gs://…), or a list of them.",
    )
    format: Literal["auto", Format] = Field(
        "auto", description="`auto` decides by the files' names, and by their content where a name does not tell."
    )
    split: str | None = Field(
        None, description="Which split of a Hugging Face `DatasetDict` that was saved to disk, such as `train`."
    )
    version: int | str | None = Field(
        None,
        description="Which version of a Delta, Iceberg or Lance table: a number, a snapshot's id, or a tag's or "
        "branch's name. Default: the newest when the run starts.",
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
    encoding: str | None = Field(
        None,
        description="Of CSV, TSV and JSON files without a byte order mark, as Python calls it: latin-1, cp1252, "
        "shift-jis, … Default: UTF-8.",
    )
    delimiter: str | None = Field(
        None, description="Between the fields of CSV. Default: whichever of `,`, `;`, tab and `|` the header has most."
    )
    column_names: Strings | None = Field(
        None, min_length=1, description="Of CSV files whose first line is a row already, not the columns' names."
    )
    column_types: dict[str, str] | None = Field(
        None,
        description="Types of CSV columns by name: int, float, bool, date, time, timestamp, or one of Arrow's such as "
        "int32. Default: text, as it stands.",
    )
    storage_options: StorageOptions | None = Field(
        None,
        repr=False,
        description="Of the bucket, by pyarrow's names or the environment's; of s3:// access_key, secret_key, "
        "session_token, region, endpoint_override, anonymous, …; of gs:// access_token, endpoint_override, anonymous, "
        "…; of abfs:// account_name, account_key, sas_token, …. Secrets show nowhere. Default: the environment's.",
    )
    limit: int | None = Field(None, ge=1, description="Only the first N rows.")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        """By its one name."""
        if value is None:
            return None
        try:
            name = codecs.lookup(value).name.removesuffix("-sig")
            for errors in ("ignore", "surrogateescape"):  # some, as idna, know no way with what is wrong
                codecs.getincrementaldecoder(name)(errors).decode("{}\n".encode(name), final=True)
            return name
        except (LookupError, ValueError, TypeError):
            raise ValueError(f"no encoding {value!r}; e.g. utf-8, utf-16, latin-1, cp1252") from None

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n\0'):
            raise ValueError(f"got {value!r}; one ASCII character that is neither a quote nor a newline")
        return value

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
