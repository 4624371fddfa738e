"""Where the rows come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_job.spec.section import Section, Strings


class InputSpec(Section):
    """Where the rows come from."""

    path: Strings = Field(
        min_length=1,
        description="File, folder, glob or URI (s3://…, gs://…), or a list of them.",
    )
    format: Literal["auto", "parquet", "images", "jsonl", "arrow", "webdataset", "hf", "delta", "iceberg", "lance"] = (
        Field("auto", description="`auto` decides by the files' suffixes.")
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
    limit: int | None = Field(None, ge=1, description="Only the first N rows.")
