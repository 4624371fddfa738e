"""The state of a run, from its files alone: `python -m ray_job status OUT`. Needs neither the job's machine nor Ray."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_job.output.ledger import Ledger
from ray_job.output.lock import is_locked
from ray_job.output.manifest import Manifest, State, engine_text, placement_text
from ray_job.output.totals import Totals
from ray_job.storage.places import Location

_RATE_PARTS = 20
_SHORTEST_RATE_S = 1.0  # parts committed closer together than this give no rate
_OPEN = (State.IN_PROGRESS, State.FINALIZING)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A run at one moment. `is_alive` is None on object stores, where only the age of the newest part shows it."""

    output: str
    state: str
    is_alive: bool | None
    run: int
    error: str | None
    rows: int
    expected_rows: int
    answered: int
    failed: int
    error_codes: dict[str, int]
    unparsed: dict[str, int]  # answers without a value in `parsed`, by finish_reason
    parts: int
    rows_per_s: float | None  # over the newest parts
    newest_part_age_s: float | None
    fingerprint: str
    placement: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    def table(self) -> str:
        """For people."""
        alive = {
            True: "running",
            False: "not running; finish it with --mode resume",
            None: "see the newest part's age",
        }
        state = self.state if self.state not in _OPEN else f"{self.state} ({alive[self.is_alive]})"
        age = "none" if self.newest_part_age_s is None else f"{self.newest_part_age_s:.0f} s ago"
        rows = [
            ("state", state),
            *([("error", self.error)] if self.error else []),
            ("run", f"{self.run}"),
            ("rows", f"{self.rows} of {self.expected_rows}"),
            ("answered", f"{self.answered}"),
            *Totals(unparsed=self.unparsed).unparsed_lines(),
            ("failed", f"{self.failed}"),
            *((f"  {code}", f"{count}") for code, count in self.error_codes.items()),
            *([("rows/s", f"{self.rows_per_s:.1f}")] if self.rows_per_s is not None else []),
            ("parts", f"{self.parts}, the newest {age}"),
            *([("computed on", placement_text(self.placement))] if self.placement else []),
            *([("engine", engine)] if (engine := engine_text(self.placement)) else []),
            ("fingerprint", self.fingerprint),
            ("output", self.output),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def job_status(root: Location) -> JobStatus:
    """Reads the manifest and the parts' footers.

    Raises:
        SpecError: there is no manifest, or it cannot be read.
        RayJobError: the storage fails.
    """
    return status_of(root, Manifest.of_output(root), Ledger.scan(root))


def status_of(root: Location, manifest: Manifest, ledger: Ledger) -> JobStatus:
    """The same, from a manifest and a ledger that were read before."""
    totals, record = Totals.of_ledger(ledger), manifest.inputs[-1]
    num_earlier = int((ledger.rows().positions < record.first_position).sum())
    newest_s = max((part.modified_s for part in ledger.parts), default=None)
    return JobStatus(
        output=str(root),
        state=str(manifest.state),
        is_alive=is_locked(root),
        run=manifest.run,
        error=manifest.error,
        rows=totals.rows,
        expected_rows=num_earlier + record.rows - record.known_rows,
        answered=totals.answered,
        failed=totals.failed,
        error_codes=totals.error_codes,
        unparsed=totals.unparsed,
        parts=totals.parts,
        rows_per_s=_rate(ledger, manifest),
        newest_part_age_s=None if newest_s is None else max(0.0, time.time() - newest_s),
        fingerprint=manifest.fingerprint,
        placement=manifest.placement,
    )


def _rate(ledger: Ledger, manifest: Manifest) -> float | None:
    """Records per second over the newest parts of the latest run."""
    parts = sorted((part.modified_s, part.num_rows) for part in ledger.parts if part.account.run == manifest.run)
    newest = parts[-_RATE_PARTS:]
    if not newest or newest[-1][0] - newest[0][0] < _SHORTEST_RATE_S:
        return None
    return sum(num_rows for _, num_rows in newest[1:]) / (newest[-1][0] - newest[0][0])
