"""What a run finds in its output folder, and whether its mode allows it to continue. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_job.errors import FingerprintMismatch, SpecError
from ray_job.output.fingerprint import differences
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import MANIFEST, InputRecord, Manifest, State
from ray_job.spec import OutputSpec
from ray_job.storage.places import Location
from ray_job.storage.whole_files import is_empty, read_text


@dataclass(frozen=True)
class ExistingOutput:
    """The output folder as a run finds it."""

    previous: Manifest | None  # of the runs to continue; None for a first run
    ledger: Ledger  # what those runs committed
    inputs: tuple[InputRecord, ...]  # this run's is the last
    is_replaced: bool = False  # what is there must be deleted first

    @property
    def is_finished(self) -> bool:
        """Whether the previous runs were completed."""
        return self.previous is not None and self.previous.state == State.COMPLETED

    @property
    def has_all_parts(self) -> bool:
        """Whether the parts hold as many records as the previous runs counted, and none is damaged."""
        if self.previous is None or self.ledger.unreadable:
            return False
        totals = self.previous.totals
        return len(self.ledger.keys) == totals.answered + totals.failed

    @property
    def is_changed(self) -> bool:
        """Whether the input differs from that of the previous run."""
        return self.previous is not None and self.inputs != self.previous.inputs

    @property
    def input(self) -> InputRecord:
        """This run's input."""
        return self.inputs[-1]


def open_output(
    root: Location, spec: OutputSpec, identity: str, num_rows: int, fields: Mapping[str, Any]
) -> ExistingOutput:
    """Looks at the folder and decides whether the run may use it.

    Args:
        root: the output folder.
        spec: what it says; `mode` decides.
        identity: of the input (`inputs.identity`).
        num_rows: of the input.
        fields: of the fingerprint.

    Raises:
        SpecError: the folder holds something that the mode does not allow for.
        FingerprintMismatch: the answers there were made by another job.
        RayJobError: the storage fails.
    """
    first = (InputRecord(identity, 0, num_rows),)
    if is_empty(root):
        return ExistingOutput(None, Ledger([], {}), first)
    if read_text(root, MANIFEST) is None:
        raise SpecError(
            [f"output.path: {root} is not empty and has no {MANIFEST}, so it is no job's output; it is left alone"]
        )
    if spec.mode == "overwrite":
        return ExistingOutput(None, Ledger([], {}), first, is_replaced=True)
    old = Manifest.of_output(root)
    if spec.mode == "error":
        raise SpecError([_refusal(root, old)])
    check_fingerprint(root, old, fields)
    return ExistingOutput(old, Ledger.scan(root), _numbered(old, identity, num_rows))


def check_fingerprint(root: Location, old: Manifest, fields: Mapping[str, Any]) -> None:
    """Refuses to mix answers.

    Raises:
        FingerprintMismatch: with a line for each field that differs.
    """
    lines = differences(old.fields, fields)
    if lines:
        raise FingerprintMismatch(
            f"{root}: the answers there are from a job that differs from this one (fingerprint {old.fingerprint}):\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\nRestore these settings, choose another output.path, or replace the output with --mode overwrite"
        )


def _numbered(old: Manifest, identity: str, num_rows: int) -> tuple[InputRecord, ...]:
    """The inputs with this run's as the last: the same as before, or a new one whose rows are numbered after it."""
    last = old.inputs[-1]
    if (last.identity, last.rows) == (identity, num_rows):
        return old.inputs
    return (*old.inputs, InputRecord(identity, last.first_position + last.rows, num_rows))


def _refusal(root: Location, old: Manifest) -> str:
    if old.state == State.COMPLETED:
        return (
            f"output.path: {root} is not empty: it holds a finished run of {old.totals.rows} rows. Choose another "
            "folder, add new rows with --mode append, or replace it with --mode overwrite"
        )
    return (
        f"output.path: {root} is not empty: it holds a run that was not completed ({old.state}). Finish it with "
        "--mode resume, or replace it with --mode overwrite"
    )
