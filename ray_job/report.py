"""What a finished run did: for machines as JSON, for people as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ray_job.output.run import Totals


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run."""

    output: str
    input_rows: int
    totals: Totals
    elapsed_s: float
    fingerprint: str
    timings_s: dict[str, float] = field(default_factory=dict)  # summed over all workers

    def to_dict(self) -> dict[str, Any]:
        """JSON of the report; rates are over the whole run, start-up included."""
        return {
            **asdict(self),
            "rows_per_s": round(self.totals.rows / self.elapsed_s, 3),
            "completion_tokens_per_s": round(self.totals.completion_tokens / self.elapsed_s, 3),
        }

    def table(self) -> str:
        """The summary printed at the end of a job."""
        totals = self.totals
        rows = [
            ("rows", f"{self.input_rows}"),
            ("answered", f"{totals.answered}"),
            ("failed", f"{totals.failed}"),
            *((f"  {code}", f"{count}") for code, count in totals.error_codes.items()),
            ("prompt tokens", f"{totals.prompt_tokens}"),
            ("answer tokens", f"{totals.completion_tokens}"),
            ("time", f"{self.elapsed_s:.1f} s"),
            ("rows/s", f"{totals.rows / self.elapsed_s:.1f}"),
            *((f"{name} time", f"{seconds:.1f} s, all workers") for name, seconds in self.timings_s.items()),
            ("parts", f"{totals.parts}"),
            ("output", self.output),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
