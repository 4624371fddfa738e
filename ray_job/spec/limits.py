"""What a row may cost, and how many may fail."""

from __future__ import annotations

from pydantic import Field

from ray_job.spec.section import Section


class LimitsSpec(Section):
    """What a row may cost, and how many may fail."""

    max_pixels: int = Field(89_478_485, ge=1, description="Maximum pixels of a picture, checked before it is decoded.")
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="Maximum encoded bytes of a picture.")
    fetch_timeout_s: float = Field(
        30.0, gt=0, description="Seconds that fetching a picture from the web may take in total."
    )
    max_fetches: int = Field(16, ge=1, le=256, description="Pictures that a preparing task fetches at the same time.")
    max_images: int = Field(64, ge=0, description="Maximum number of pictures in a row.")
    max_prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum number of prompt tokens of a row, pictures included. Default: what the model can hold.",
    )
    max_errors: int | None = Field(None, ge=0, description="More failed rows than this end the job (exit 3).")
    max_error_rate: float | None = Field(
        None, ge=0.0, le=1.0, description="A larger share of failed rows than this ends the job (exit 3)."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="Attempts, within a run, at what fails for a temporary reason such as a storage error.",
    )
    row_deadline_s: float | None = Field(
        None,
        gt=0,
        description="Seconds a row may take to be prepared, and again to be answered once the engine has it; a row "
        "that takes longer becomes an error. Native code that hangs is ended with its process after twice that. "
        "Default: none.",
    )
    max_restarts: int = Field(
        30,
        ge=0,
        description="Restarts of an actor that dies, and attempts at a block, before the job fails. A row that kills "
        "its process costs 1 + ⌈log₈ batching.block_rows⌉ of them (3 by default, at least 2) until it is found and "
        "becomes an error, so 30 allow for 10 such rows per actor.",
    )
    grace_s: float = Field(
        20.0, ge=0, description="Seconds after SIGTERM or Ctrl-C in which rows in flight are finished and committed."
    )
    no_progress_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds without any progress, including waiting for machines, after which the job ends.",
    )
