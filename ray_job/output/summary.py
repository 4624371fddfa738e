"""What a finished run did, as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ray_job.inputs.skipped import Skipped
from ray_job.output.activity import Activity
from ray_job.output.manifest import Duplicates, Manifest, engine_text, placement_text
from ray_job.output.totals import Totals
from ray_job.storage.places import Location


@dataclass(frozen=True, slots=True)
class Report:
    """The summary of a finished run."""

    output: str
    input_rows: int
    totals: Totals  # of the whole output, earlier runs included
    elapsed_s: float  # of this run
    fingerprint: str
    already_done: int = 0  # rows of the input that were done before this run
    duplicates: Duplicates = field(default_factory=Duplicates)
    skipped: dict[str, Any] = field(default_factory=dict)  # files of the input that held no rows, as in the manifest
    activity: Activity = field(default_factory=Activity)  # of this run's workers
    placement: dict[str, Any] = field(default_factory=dict)  # what they computed with, as in the manifest

    @classmethod
    def of_manifest(
        cls, root: Location, manifest: Manifest, elapsed_s: float, activity: Activity | None = None
    ) -> Self:
        """The report of the latest run in a manifest."""
        return cls(
            output=str(root),
            input_rows=manifest.input_rows,
            totals=manifest.totals,
            elapsed_s=elapsed_s,
            fingerprint=manifest.fingerprint,
            already_done=manifest.already_done,
            duplicates=manifest.duplicates,
            skipped=manifest.skipped,
            activity=activity or Activity(),
            placement=manifest.placement,
        )

    @property
    def rows_per_s(self) -> float:
        """Rows done by this run per second, start-up included."""
        return (self.input_rows - self.already_done) / max(self.elapsed_s, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """JSON of the report."""
        return {
            **asdict(self),
            "activity": self.activity.totals(),
            "rows_per_s": round(self.rows_per_s, 3),
            "completion_tokens_per_s": round(self.totals.completion_tokens / max(self.elapsed_s, 1e-9), 3),
        }

    def table(self) -> str:
        """The summary printed at the end of a job."""
        totals, duplicates = self.totals, self.duplicates
        rows = [
            ("rows", f"{self.input_rows}"),
            *([("already done", f"{self.already_done}")] if self.already_done else []),
            ("answered", f"{totals.answered}"),
            *totals.unparsed_lines(),
            ("failed", f"{totals.failed}"),
            *((f"  {code}", f"{count}") for code, count in totals.error_codes.items()),
            *([("skipped", Skipped.of_dict(self.skipped).text())] if self.skipped else []),
            *([("repeated ids", _repeated(duplicates))] if duplicates.ids else []),
            ("prompt tokens", f"{totals.prompt_tokens}"),
            ("answer tokens", f"{totals.completion_tokens}"),
            ("time", f"{self.elapsed_s:.1f} s"),
            ("rows/s", f"{self.rows_per_s:.1f}"),
            *([("computed on", placement_text(self.placement))] if self.placement else []),
            *([("engine", engine)] if (engine := engine_text(self.placement)) else []),
            *self.activity.lines(),
            ("parts", f"{totals.parts}"),
            ("output", self.output),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _repeated(found: Duplicates) -> str:
    ids = "1 id comes" if found.ids == 1 else f"{found.ids} ids come"
    rows = "1 further row" if found.rows == 1 else f"{found.rows} further rows"
    return f"{ids} more than once, in {rows}; each row has its own answer: {', '.join(found.examples)}"
