"""Where the answers go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_job.spec.section import Section, StorageOptions


class OutputSpec(Section):
    """Where the answers go."""

    path: str = Field(description="Folder or URI of the output.")
    mode: Literal["error", "resume", "append", "overwrite"] = Field(
        "error",
        description="What to do where there is output already. `error`: refuse. `resume`: do what is missing of an "
        "unfinished run; a finished one stays as it is. `append`: the same, and rows that are new in the input are "
        "added to a finished run. `overwrite`: replace it. Resume and append want the same fingerprint, and start "
        "a run where there is none.",
    )
    format: Literal["parquet", "openai_batch"] = Field(
        "parquet",
        description="`openai_batch`: beside the Parquet parts, `_openai/results.jsonl` and `_openai/errors.jsonl` with "
        "the lines that batch services give, made when all rows are counted.",
    )
    retry_failed: bool = Field(
        False, description="With resume or append: do failed rows again; the new result replaces the error."
    )
    part_rows: int | None = Field(
        None,
        ge=1,
        description="Rows of one Parquet part; rows that are in no part when a job dies are answered again. Default: "
        "256, or of a small input a twentieth, both in whole blocks.",
    )
    storage_options: StorageOptions | None = Field(
        None,
        repr=False,
        description="Of the bucket, by pyarrow's names or the environment's; of s3:// access_key, secret_key, "
        "session_token, region, endpoint_override, anonymous, …; of gs:// access_token, endpoint_override, anonymous, "
        "…; of abfs:// account_name, account_key, sas_token, …. Secrets show nowhere. Default: the environment's.",
    )
