"""Checks an output from its files alone, at any time: `python -m ray_job verify OUT`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_job.errors import RayJobError, listed
from ray_job.output.account import questions_of
from ray_job.output.compaction import read_part
from ray_job.output.count import RowCount
from ray_job.output.duplicates import find_duplicates
from ray_job.output.ledger import Ledger, Part
from ray_job.output.manifest import SUCCESS, Manifest, State
from ray_job.output.openai_batch import BATCH_FILES, batch_lines
from ray_job.output.parts import DATA, ERRORS, stored_schema
from ray_job.output.totals import Totals
from ray_job.rows import QUESTION_INDEX, ROW_ID, Status
from ray_job.storage.places import STORAGE_ERRORS, Location
from ray_job.storage.whole_files import read_text

_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of an output found."""

    output: str
    state: str
    rows: int
    answered: int
    failed: int
    parts: int
    problems: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether the output is finished and holds what its manifest says."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"ok": self.is_good, **asdict(self)}

    def table(self) -> str:
        """For people."""
        head = f"{self.output}: {self.state}, {self.rows} rows: {self.answered} answered, {self.failed} failed records"
        shown = [listed(self.problems, _MAX_SHOWN)] if self.problems else []
        return "\n".join([f"{head} in {self.parts} parts; {len(self.problems)} problems", *shown])


def verify(root: Location) -> Verification:
    """Reads every part whole, verifies checksums, and compares what it finds with the manifest.

    Raises:
        SpecError: there is no manifest, or it cannot be read.
        RayJobError: the storage fails.
    """
    manifest = Manifest.of_output(root)
    ledger = Ledger.scan(root)
    problems = [f"{name}: damaged: {problem}" for name, problem in ledger.unreadable.items()]
    problems += _part_problems(ledger, manifest)
    totals = Totals.of_ledger(ledger)
    problems += _state_problems(root, manifest)
    problems += _count_problems(ledger, manifest, totals)
    problems += _batch_problems(root, manifest, totals)
    if not problems and manifest.duplicates != (found := find_duplicates(ledger)):
        problems.append(f"{found.rows} rows repeat an id; the manifest says {manifest.duplicates.rows}")
    state = str(manifest.state)
    return Verification(str(root), state, totals.rows, totals.answered, totals.failed, totals.parts, tuple(problems))


def _state_problems(root: Location, manifest: Manifest) -> Iterator[str]:
    has_marker = read_text(root, SUCCESS) is not None
    if manifest.state == State.COMPLETED:  # and so the marker is there
        return
    missing = "" if has_marker else f"{SUCCESS} is missing: "
    yield f"{missing}the run is not finished ({manifest.state}); finish it with --mode resume"
    if has_marker:
        yield f"{SUCCESS} is there, and the manifest says {manifest.state}"


def _count_problems(ledger: Ledger, manifest: Manifest, totals: Totals) -> Iterator[str]:
    yield from RowCount.of_ledger(ledger, manifest.inputs[-1]).problems()
    if manifest.state == State.COMPLETED and totals != manifest.totals:
        pairs = [
            f"{name} {value}, the manifest says {asdict(manifest.totals)[name]}"
            for name, value in asdict(totals).items()
            if value != asdict(manifest.totals)[name]
        ]
        yield f"the parts hold {'; '.join(pairs)}"


def _batch_problems(root: Location, manifest: Manifest, totals: Totals) -> Iterator[str]:
    """Whether the batch files of a finished run have a line for each row."""
    if manifest.state != State.COMPLETED or manifest.spec.get("output", {}).get("format") != "openai_batch":
        return
    expected = {DATA: totals.answered, ERRORS: totals.failed}
    for folder, found in batch_lines(root).items():
        if found != expected[folder]:
            held = "is missing" if found is None else f"has {found} lines, and there are {expected[folder]} rows"
            yield f"{BATCH_FILES[folder]}: {held}; delete it, and --mode resume makes it again"


def _part_problems(ledger: Ledger, manifest: Manifest) -> Iterator[str]:
    columns = _Columns(ledger, manifest)
    for part in ledger.parts:
        try:
            table = read_part(part)
        except RayJobError as error:
            yield str(error)
            continue
        if problem := columns.problem(part, table.schema):
            yield f"{part.name}: {problem}"
        else:
            yield from _row_problems(part, table)


class _Columns:
    """Compares the columns of parts with those the manifest names.

    A part may have been written with a type that Parquet gives back as another (`parts.stored_schema`), and be written
    again as it was given back. So what counts is what each is given back as; the manifest names the types, and the
    parts tell which type has that name.
    """

    def __init__(self, ledger: Ledger, manifest: Manifest) -> None:
        self._expected = {
            name.removeprefix(_COLUMNS): type_ for name, type_ in manifest.fields.items() if name.startswith(_COLUMNS)
        }
        self._stored: dict[int, pa.Schema | None] = {}  # by the id of a part's schema, which the ledger keeps
        self._named: dict[str, pa.DataType] = {}
        for schema in {id(part.schema): part.schema for part in ledger.parts}.values():
            self._stored[id(schema)] = stored = _stored_schema(schema)
            for written, given_back in zip(schema, stored or (), strict=False):
                self._named[str(given_back.type)] = self._named[str(written.type)] = given_back.type

    def problem(self, part: Part, found: pa.Schema) -> str | None:
        """What is wrong with a part's columns, if anything."""
        stored = self._stored[id(part.schema)]
        if stored is None or [(field.name, field.type) for field in stored] != [(f.name, f.type) for f in found]:
            return "its footer does not say which columns it has; it is damaged"
        if stored.names != list(self._expected):
            return f"its columns are {', '.join(stored.names)}; the job's are {', '.join(self._expected)}"
        for field, (name, expected) in zip(stored, self._expected.items(), strict=True):
            if field.type != self._named.get(expected):
                return f"its column {name} is {field.type}; the job's is {expected}"
        return None


def _stored_schema(schema: pa.Schema) -> pa.Schema | None:
    try:
        return stored_schema(schema)
    except (*STORAGE_ERRORS, ValueError):  # a name or type that was damaged
        return None


def _row_problems(part: Part, table: pa.Table) -> Iterator[str]:
    status = str(Status.OK if part.folder == DATA else Status.ERROR)
    num_alien = table.num_rows - (pc.sum(pc.equal(table.column("status"), status)).as_py() or 0)
    if num_alien:
        yield f"{part.name}: the status of {num_alien} rows is not {status!r}"
    if table.column(ROW_ID).null_count:
        yield f"{part.name}: {table.column(ROW_ID).null_count} rows have no id"
    if QUESTION_INDEX in table.column_names:
        asked = table.column(QUESTION_INDEX).to_numpy()
        if not np.array_equal(asked, questions_of(part.account.keys)):
            yield f"{part.name}: its questions are not those its footer names"


_COLUMNS = "output.columns."
