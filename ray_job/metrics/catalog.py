"""Every metric of a job. Ray puts `ray_` before each name and `_total` behind a counter's.

Numbers are of one actor and start at 0 with it, so a dashboard sums over actors; they lag a few seconds, and those of
an actor's last second may be missing. What a run did in all is in its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

RAY_PREFIX = "ray_"


class Kind(StrEnum):
    """The metric's type: a counter grows, a gauge rises and falls."""

    COUNTER = "counter"  # up only
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is given to Ray."""

    name: str
    kind: Kind
    description: str
    label: str | None = None  # the one it is told apart by, beside the actor

    @property
    def exported_name(self) -> str:
        """The name in Prometheus."""
        return f"{RAY_PREFIX}{self.name}" + ("_total" if self.kind == Kind.COUNTER else "")


ROWS = Metric("job_rows", Kind.COUNTER, "Output rows given back, by status: ok or error.", "status")
ERRORS = Metric("job_errors", Kind.COUNTER, "Rows that failed, by error code.", "code")
PROMPT_TOKENS = Metric("job_prompt_tokens", Kind.COUNTER, "Prompt tokens of answered rows, pictures included.")
COMPLETION_TOKENS = Metric("job_completion_tokens", Kind.COUNTER, "Tokens of finished answers.")
PREFILL_TOKENS = Metric("job_prefill_tokens", Kind.COUNTER, "Prompt tokens computed.")
DECODE_TOKENS = Metric("job_decode_tokens", Kind.COUNTER, "Answer tokens computed.")
PREFIX_TOKENS_REUSED = Metric(
    "job_prefix_tokens_reused", Kind.COUNTER, "Prompt tokens not computed, as another row's keys were there."
)
PICTURES_WANTED = Metric("job_pictures_wanted", Kind.COUNTER, "Pictures whose features a row wanted.")
PICTURES_ENCODED = Metric("job_pictures_encoded", Kind.COUNTER, "Pictures the vision tower computed.")
DUPLICATE_ROWS = Metric("job_duplicate_rows", Kind.COUNTER, "Rows answered with an equal row's answer.")
PUT_BACK_ROWS = Metric("job_put_back_rows", Kind.COUNTER, "Rows computed again: out of memory, or new rotary factors.")
MEMORY_FAILURES = Metric("job_memory_failures", Kind.COUNTER, "Steps that ran out of memory.")
STAGE_SECONDS = Metric(
    "job_stage_seconds",
    Kind.COUNTER,
    "Seconds of work by stage: prepare (of the rows that reached the actor), vision, prefill, decode, schedule; idle "
    "is the engine's wait for rows.",
    "stage",
)
QUEUE_ROWS = Metric("job_queue_rows", Kind.GAUGE, "Rows in the actor that wait for a slot.")
RUNNING_ROWS = Metric("job_running_rows", Kind.GAUGE, "Rows in the engine's slots.")
SLOTS = Metric("job_slots", Kind.GAUGE, "Slots of the engine: rows it can run together.")

METRICS = (
    ROWS,
    ERRORS,
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
    PREFILL_TOKENS,
    DECODE_TOKENS,
    PREFIX_TOKENS_REUSED,
    PICTURES_WANTED,
    PICTURES_ENCODED,
    DUPLICATE_ROWS,
    PUT_BACK_ROWS,
    MEMORY_FAILURES,
    STAGE_SECONDS,
    QUEUE_ROWS,
    RUNNING_ROWS,
    SLOTS,
)
STAGES = ("prepare", "vision", "prefill", "decode", "schedule", "idle")
# Counters that are an engine's own counts, under the name they have in `engine.stats.EngineStats`.
ENGINE_COUNTERS = {
    "prefill_tokens": PREFILL_TOKENS,
    "decode_tokens": DECODE_TOKENS,
    "prefix_tokens_reused": PREFIX_TOKENS_REUSED,
    "pictures_wanted": PICTURES_WANTED,
    "pictures_encoded": PICTURES_ENCODED,
    "duplicate_rows": DUPLICATE_ROWS,
    "put_back_rows": PUT_BACK_ROWS,
    "memory_failures": MEMORY_FAILURES,
}
