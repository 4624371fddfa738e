"""What a row may cost, and how many may fail."""

from __future__ import annotations

from pydantic import Field

from ray_job.spec.section import Section


class LimitsSpec(Section):
    """What a row may cost, and how many may fail."""

    max_pixels: int = Field(89_478_485, ge=1, description="Pixels of a picture, before decoding it.")
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="Encoded bytes of a picture.")
    fetch_timeout_s: float = Field(30.0, gt=0, description="Seconds to fetch a picture from the web, all in all.")
    max_fetches: int = Field(16, ge=1, le=256, description="Pictures that a preparing task fetches at once.")
    max_images: int = Field(64, ge=0, description="Pictures of a row.")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="Prompt tokens of a row, pictures included. Default: what the model can hold."
    )
    max_errors: int | None = Field(None, ge=0, description="Failed rows above this end the job (exit 3).")
    max_error_rate: float | None = Field(
        None, ge=0.0, le=1.0, description="A share of failed rows above this ends the job (exit 3)."
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="Tries of what fails for a passing reason, such as a storage error, within a run."
    )
    row_deadline_s: float | None = Field(
        None,
        gt=0,
        description="Seconds a row may take to be prepared, and then to be answered once it runs; a row that takes "
        "longer is an error. Native code that hangs is ended with its process after twice that. Default: none.",
    )
    max_restarts: int = Field(
        30,
        ge=0,
        description="Restarts of an actor that dies, and tries of a block, before the job fails. A row that kills its "
        "process costs 1 + ⌈log₈ batching.block_rows⌉ of them (3 by default, 2 at least) until it is found and becomes "
        "an error, so that 30 allow 10 such rows for each actor.",
    )
    grace_s: float = Field(
        20.0, ge=0, description="Seconds from SIGTERM or Ctrl-C in which rows in flight are finished and committed."
    )
    no_progress_s: float = Field(
        1800.0, gt=0, description="Seconds without any progress, waiting for machines included, that end the job."
    )
