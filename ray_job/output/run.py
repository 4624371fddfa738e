"""One run on an output folder: from locking it and finding what is left to do, to `_SUCCESS`.

data/part-*.parquet      answered rows
errors/part-*.parquet    failed rows, same schema; a folder without rows has an empty part
_openai/*.jsonl          the same for batch services' clients, on request
_manifest.json           state, fingerprint, inputs, resolved spec, versions, totals
_report.json             what the run did and how fast
_SUCCESS                 written last, and only when the count adds up

Nothing is written before every check has passed. A run that is killed, wherever it is, leaves whole parts and a
manifest that says which job they belong to. `_SUCCESS` completes a run: until it exists the run is not finished,
whatever the manifest says; once it exists, nothing that happens to the run changes the folder any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from ray_job.errors import AccountingError, RayJobError, TooManyRowErrors
from ray_job.inputs.identity import input_identity
from ray_job.inputs.source import Source
from ray_job.output.activity import Activity
from ray_job.output.compaction import drop_superseded
from ray_job.output.count import RowCount
from ray_job.output.duplicates import find_duplicates
from ray_job.output.empty_parts import settle_empty_parts
from ray_job.output.fingerprint import DTYPE, fingerprint_fields, settled
from ray_job.output.ledger import Ledger
from ray_job.output.lock import Lock
from ray_job.output.manifest import REPORT, REPORT_PAGE, SUCCESS, Manifest, State, public_spec, versions
from ray_job.output.modes import ExistingOutput, check_fingerprint, open_output
from ray_job.output.openai_batch import BATCH_FILES, batch_lines, write_batch_files
from ray_job.output.openai_batch import FOLDER as BATCH_FOLDER
from ray_job.output.partial_rows import PartialRows
from ray_job.output.parts import DATA, ERRORS, Receipt
from ray_job.output.summary import Report
from ray_job.output.totals import Totals
from ray_job.output.work import Work
from ray_job.redaction.logs import logger_of
from ray_job.redaction.text import public_uri
from ray_job.rows import output_schema
from ray_job.spec import JobSpec
from ray_job.storage.places import Location, locate
from ray_job.storage.whole_files import (
    part_files,
    read_text,
    remove,
    remove_leftovers,
    sync_folders,
    write_json,
    write_whole,
)

_LOG = logger_of(__name__)


class Run:
    """An open output folder. Use it in a `with`, so that an error that ends the run is written to the manifest.

    `totals` is what the output holds so far, for progress and limits; the final count is made from the files.
    `activity` is what this run's workers have done, `work` what there is to do.
    """

    def __init__(self, spec: JobSpec, source: Source, root: Location, lock: Lock) -> None:
        self.root = root
        self.totals = Totals()
        self.activity = Activity()
        self._spec = spec
        self._source = source
        self._lock = lock
        self._fields: dict[str, Any] = fingerprint_fields(spec, source)
        identity = input_identity(source)
        self._existing: ExistingOutput = open_output(root, spec.output, identity, source.num_rows, self._fields)
        self.work = Work(root, spec.output, source, self._existing)
        self._manifest: Manifest | None = None  # once it has begun
        self._started_s = time.time()

    @classmethod
    def open(cls, spec: JobSpec, source: Source) -> Self:
        """Locks the output folder and checks that the run may use it.

        Raises:
            SpecError: `output.mode` does not allow for what the folder holds, or another run is writing there.
            FingerprintMismatch: the answers there were made by another job.
        """
        root = locate(spec.output.path, spec.output.storage_options)
        lock = Lock.take(root)
        try:
            return cls(spec, source, root, lock)
        except BaseException:
            lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is not None:
                self.record_end(error)
        finally:
            self._lock.close()

    def record_end(self, error: BaseException) -> None:
        """Writes to the manifest how the run ended before its time; any thread may call it."""
        if self._manifest is not None and not self._is_completed:
            self._write_manifest(state=State.of_error(error), totals=self.totals, error=str(error))

    def add(self, receipt: Receipt) -> None:
        """Counts one more part.

        Raises:
            TooManyRowErrors: more rows failed than the limits allow.
        """
        if receipt.engine_reason is not None and self.activity.engine is None:
            _LOG.warning("the %s engine runs: %s", receipt.engine, receipt.engine_reason)
        self.totals.add(receipt, self._partial_rows.num_completed(receipt))
        self.activity.add(receipt, self._elapsed_s)
        try:
            self.totals.check(self._spec.limits, self.work.expected_rows)
        except TooManyRowErrors:
            settle_empty_parts(self.root, Ledger.scan(self.root), self._schema)
            raise

    @property
    def number(self) -> int:
        """Which of the output's runs this is, from 1."""
        return 1 if self._existing.previous is None else self._existing.previous.run + 1

    @cached_property
    def _partial_rows(self) -> PartialRows:
        return PartialRows(self.work.remaining.again)

    @property
    def num_left(self) -> int:
        """Rows that are not committed yet, or not with every question."""
        if self._manifest is None:
            return self.work.remaining.num_rows
        return self.work.expected_rows - self.totals.rows

    def begin(self, dtype: str | None = None, placement: Mapping[str, Any] | None = None) -> None:
        """Marks the output as in progress, and deletes what is replaced or damaged.

        Args:
            dtype: of the model, once the workers are settled; by default what earlier runs settled.
            placement: what the actors compute with, for the manifest; by default what an earlier run's did.

        Raises:
            FingerprintMismatch: earlier answers were made with another dtype.
        """
        existing = self._existing
        if dtype is not None:
            self._fields[DTYPE] = dtype
            if existing.previous is not None:
                check_fingerprint(self.root, existing.previous, self._fields)
        elif existing.previous is not None:
            self._fields = settled(self._fields, existing.previous.fields)
        remaining = self.work.remaining
        remove(self.root, [SUCCESS, *BATCH_FILES.values()])
        remove_leftovers(self.root)
        if existing.is_replaced:
            remove(
                self.root,
                [
                    REPORT,
                    REPORT_PAGE,
                    *(f"{name}/{f.base_name}" for name in (DATA, ERRORS) for f in part_files(self.root, name)),
                ],
            )
        for name, problem in existing.ledger.unreadable.items():
            _LOG.warning("%s/%s is damaged (%s); it is deleted and its rows are done again", self.root, name, problem)
        if existing.is_finished and not existing.has_all_parts:
            _LOG.warning("%s was finished and has lost parts since; their rows are done again", self.root)
        remove(self.root, existing.ledger.unreadable)
        self.totals.start(existing.ledger, self.work.expected_rows - remaining.num_rows, self._spec.output.retry_failed)
        record = replace(existing.input, known_rows=self.work.num_known)
        self._manifest = Manifest(
            state=State.IN_PROGRESS,
            run=self.number,
            fields=self._fields,
            inputs=(*existing.inputs[:-1], record),
            started_s=self._started_s,
            elapsed_s=0.0,
            input_rows=record.rows,
            totals=self.totals,
            already_done=record.rows - remaining.num_rows,
            skipped=self._source.skipped.to_dict(),
            spec=public_spec(self._spec),
            versions=versions(),
            placement=dict(placement or (existing.previous.placement if existing.previous is not None else {})),
        )
        self._write_manifest()

    def finish(self, before_commit: Callable[[], None] = lambda: None) -> Report:
        """Drops superseded records, counts what is on disk, writes the report and, last, `_SUCCESS`.

        A finished run with nothing left is not touched, except that batch files that are missing are made.

        Args:
            before_commit: called once the count adds up, before the run is marked as completed; from here on it should
                not be interrupted.

        Raises:
            AccountingError: the files do not hold each row exactly once.
            TooManyRowErrors: more rows failed than the limits allow.
        """
        if self._manifest is None:
            old = self._existing.previous
            if old is not None and self._existing.is_finished and self._existing.has_all_parts:
                if self._spec.output.format == "openai_batch" and None in batch_lines(self.root).values():
                    self._write_batch_files(self._existing.ledger, old.fingerprint)
                return Report.of_manifest(self.root, replace(old, already_done=old.input_rows), self._elapsed_s)
            self.begin()
        self._write_manifest(state=State.FINALIZING, totals=self.totals)
        ledger = Ledger.scan(self.root)
        if drop_superseded(self.root, ledger):
            ledger = Ledger.scan(self.root)
        settle_empty_parts(self.root, ledger, self._schema)
        self._check(ledger)
        self.totals = Totals.of_ledger(ledger)
        self.totals.check(self._spec.limits, self.work.expected_rows)
        manifest = self._write_manifest(totals=self.totals, duplicates=find_duplicates(ledger))
        self._write_batch_files(ledger, manifest.fingerprint)
        report = Report.of_manifest(self.root, manifest, self._elapsed_s, self.activity)
        before_commit()
        write_json(self.root, REPORT, report.to_dict())
        sync_folders(self.root, ("", DATA, ERRORS, BATCH_FOLDER))
        self._write_manifest(state=State.COMPLETED)
        write_whole(self.root, SUCCESS, b"")
        return report

    def _write_batch_files(self, ledger: Ledger, fingerprint: str) -> None:
        if self._spec.output.format == "openai_batch":
            write_batch_files(self.root, ledger, fingerprint, public_uri(self._spec.model.path))

    def _check(self, ledger: Ledger) -> None:
        """Checks that the parts hold each row of the input once and whole, and no other row.

        Raises:
            AccountingError: with the counts.
        """
        assert self._manifest is not None, "begin first"
        problems = [f"{name}: damaged: {problem}" for name, problem in ledger.unreadable.items()]
        count = RowCount.of_ledger(ledger, self._manifest.inputs[-1])
        problems += count.problems()
        if problems:
            raise AccountingError(
                f"{self.root}: {count.input_rows} rows were read, and {'; '.join(problems)}. Keep the folder; "
                "--mode resume does what is missing"
            )

    @property
    def _is_completed(self) -> bool:
        """Whether this run has written its `_SUCCESS`."""
        if self._manifest is None or self._manifest.state != State.COMPLETED:
            return False
        try:
            return read_text(self.root, SUCCESS) is not None
        except RayJobError:  # then nothing else can be written either
            return True

    @property
    def _schema(self) -> pa.Schema:
        form = self._spec.generation.structured_outputs
        return output_schema(self._source.id_field.type, self._source.kept, self._spec.has_questions, form)

    @property
    def _engine(self) -> dict[str, str]:
        """Which engine this run's actors run, and why, as far as they said."""
        found = {"engine": self.activity.engine, "engine_reason": self.activity.engine_reason}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def _elapsed_s(self) -> float:
        return time.time() - self._started_s

    def _write_manifest(self, **changes: Any) -> Manifest:
        assert self._manifest is not None, "begin first"
        placement = {**self._manifest.placement, **self._engine}
        elapsed_s = round(self._elapsed_s, 3)
        self._manifest = replace(self._manifest, elapsed_s=elapsed_s, placement=placement, **changes)
        self._manifest.write(self.root)
        return self._manifest
