"""One run's output folder from opening to `_SUCCESS`: markers, manifest and the final count.

data/part-*.parquet      answered rows
errors/part-*.parquet    failed rows, same schema
_manifest.json           state, fingerprint, resolved spec, versions, totals
_report.json             what the run did and how fast
_SUCCESS                 last of all, and only when the count adds up
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ray_job.errors import AccountingError, Interrupted, SpecError, TooManyRowErrors
from ray_job.output.files import is_empty, parquet_files, read_text, remove, write_whole
from ray_job.output.parts import DATA, ERRORS, Receipt, count_part
from ray_job.spec import JobSpec, LimitsSpec
from ray_job.storage import locate, without_secrets

MANIFEST, REPORT, SUCCESS = "_manifest.json", "_report.json", "_SUCCESS"
_PACKAGES = ("ray_job", "ray", "torch", "transformers", "pyarrow", "pillow", "tokenizers")


class State(StrEnum):
    """Where a run stands; the manifest's `state`."""

    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @classmethod
    def of_error(cls, error: BaseException) -> State:
        """How a run that ended with this error stands."""
        return cls.CANCELLED if isinstance(error, Interrupted | KeyboardInterrupt) else cls.FAILED


@dataclass
class Totals:
    """What the committed parts hold so far."""

    rows: int = 0  # input rows; one with several questions counts once
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    parts: int = 0
    error_codes: dict[str, int] = field(default_factory=dict)  # most frequent first

    def add(self, receipt: Receipt) -> None:
        """Counts one more part."""
        self.rows += receipt.rows
        self.answered += receipt.answered
        self.failed += receipt.failed
        self.prompt_tokens += receipt.prompt_tokens
        self.completion_tokens += receipt.completion_tokens
        self.parts += 1
        counts = Counter(self.error_codes) + Counter(receipt.error_codes)
        self.error_codes = dict(counts.most_common())

    def check(self, limits: LimitsSpec, num_rows: int) -> None:
        """Stops a job that goes wrong.

        Raises:
            TooManyRowErrors: more rows failed than the limits allow. A rate is judged against all rows of the input,
                so that a few early errors of a long job do not end it.
        """
        codes = ", ".join(f"{count} {code}" for code, count in self.error_codes.items())
        if limits.max_errors is not None and self.failed > limits.max_errors:
            raise TooManyRowErrors(f"{self.failed} rows failed ({codes}); limits.max_errors is {limits.max_errors}")
        rate = limits.max_error_rate
        if rate is not None and self.failed > rate * max(num_rows, self.answered + self.failed):
            raise TooManyRowErrors(
                f"{self.failed} of {num_rows} rows failed ({codes}); limits.max_error_rate is {rate}"
            )


class Run:
    """An open output folder."""

    def __init__(self, spec: JobSpec, num_rows: int) -> None:
        self.root = locate(spec.output.path)
        self.totals = Totals()
        self._spec = spec
        self._num_rows = num_rows
        self._started_s = time.time()

    @classmethod
    def open(cls, spec: JobSpec, num_rows: int) -> Run:
        """Claims the output folder.

        Raises:
            SpecError: there is something already and `output.mode` does not say what to do with it.
        """
        run = cls(spec, num_rows)
        if not is_empty(run.root):
            if spec.output.mode == "error":
                raise SpecError(
                    [
                        f"output.path: {run.root} is not empty; choose another folder, or replace its output with "
                        "`--set output.mode=overwrite`"
                    ]
                )
            if read_text(run.root, MANIFEST) is None:
                raise SpecError(
                    [f"output.path: {run.root} has no {MANIFEST}, so it is no job's output; it is not overwritten"]
                )
            remove(run.root, [SUCCESS, DATA, ERRORS, REPORT, MANIFEST])
        run.write_manifest(State.IN_PROGRESS)
        return run

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run was opened."""
        return time.time() - self._started_s

    def finish(self, report: dict[str, Any]) -> None:
        """Counts what is on disk, writes the report and, last, `_SUCCESS`.

        Raises:
            AccountingError: the files do not hold each input row exactly once.
        """
        self.write_manifest(State.FINALIZING)
        self._check_files()
        self._write_json(REPORT, report)
        self.write_manifest(State.COMPLETED)
        write_whole(self.root, SUCCESS, b"")

    def write_manifest(self, state: State, error: str | None = None) -> None:
        """Writes the manifest with the totals so far."""
        self._write_json(
            MANIFEST,
            {
                "state": str(state),
                "error": error,
                "fingerprint": self._spec.fingerprint(),
                "started_s": self._started_s,
                "elapsed_s": round(self.elapsed_s, 3),
                "input_rows": self._num_rows,
                "totals": asdict(self.totals),
                "spec": public_spec(self._spec),
                "versions": {name: _version(name) for name in _PACKAGES},
            },
        )

    def _check_files(self) -> None:
        """Rows in = answered + failed, by what the parts' footers say."""
        counted = {folder: self._count(folder) for folder in (DATA, ERRORS)}
        expected = {DATA: self.totals.answered, ERRORS: self.totals.failed}
        if counted != expected or self.totals.rows != self._num_rows:
            raise AccountingError(
                f"{self.root}: {self._num_rows} rows were read and {self.totals.rows} came back; the parts hold "
                f"{counted[DATA]} answers and {counted[ERRORS]} errors, {expected[DATA]} and {expected[ERRORS]} were "
                "written. Keep the folder and report this"
            )

    def _count(self, folder: str) -> int:
        """Rows in a folder's committed parts, by their footers."""
        return sum(count_part(part) for part in parquet_files(self.root, folder))

    def _write_json(self, name: str, value: Any) -> None:
        write_whole(self.root, name, json.dumps(value, indent=2, ensure_ascii=False).encode())


def public_spec(spec: JobSpec) -> dict[str, Any]:
    """The spec as a manifest may show it: without credentials in its URIs."""
    dump: dict[str, Any] = spec.model_dump(mode="json")
    dump["input"]["path"] = [without_secrets(path) for path in dump["input"]["path"]]
    for section, key in (("output", "path"), ("input", "image_root")):
        if dump[section][key] is not None:
            dump[section][key] = without_secrets(dump[section][key])
    return dump


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
