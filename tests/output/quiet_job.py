"""A job whose rows this process answers itself, without Ray or a model; all else is the real path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ray_job import JobSpec
from ray_job.output.parts import Receipt
from ray_job.output.run import Run
from ray_job.output.summary import Report
from ray_job.output.verify import Verification, verify
from ray_job.rows import INTERNAL_PREFIX, ROW_ID, WORKER, output_schema, result_schema
from ray_job.stages.open_job import open_job
from ray_job.stages.write import PartWriter
from ray_job.storage.places import Location, locate

from .conftest import record

Change = Callable[[int], dict[str, Any]]
DTYPE = "float32"  # what the workers settle


@dataclass
class QuietJob:
    """An input file, its spec, and runs over it."""

    folder: Path
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the spec, beside the usual ones

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def root(self) -> Location:
        return locate(str(self.out))

    def write_input(self, num_rows: int, **columns: Any) -> None:
        table = pa.table({"id": [f"row-{row}" for row in range(num_rows)], "question": ["what?"] * num_rows, **columns})
        pq.write_table(table, self.folder / "rows.parquet")

    def spec(self, mode: str = "error", **sections: dict[str, Any]) -> JobSpec:
        return JobSpec.from_dict(self._data(mode, sections))

    def spec_file(self, mode: str, **sections: dict[str, Any]) -> Path:
        file = self.folder / f"{mode}.yaml"
        file.write_text(yaml.safe_dump(self._data(mode, sections)))
        return file

    def run(
        self, mode: str = "error", change: Change = lambda row: {}, part_rows: int = 4, **sections: dict[str, Any]
    ) -> Report:
        """A whole run."""
        with self.opened(mode, **sections) as run:
            self.commit(run, change, part_rows)
            return run.finish()

    def opened(self, mode: str = "error", **sections: dict[str, Any]) -> Run:
        spec, source, _ = open_job(self.spec(mode, **sections))
        return Run.open(spec, source)

    def commit(self, run: Run, change: Change = lambda row: {}, part_rows: int = 4) -> None:
        """Begins a run and answers each row that is left; `change` replaces fields of a record."""
        spec, source, _ = open_job(run._spec)
        run.begin(DTYPE)
        schema = output_schema(
            source.id_field.type, source.kept, spec.has_questions, spec.generation.structured_outputs
        )
        writer = PartWriter(run.root, schema, run.number)
        left = [row for row, is_left in enumerate(run.work.remaining.is_left) if is_left]
        kept = pq.read_table(self.folder / "rows.parquet", columns=[column.name for column in source.kept])
        for start in range(0, len(left), part_rows):
            rows = left[start : start + part_rows]
            records = [record(row, **change(row)) for row in rows]
            table = _with_kept(records, kept.take(rows), result_schema(schema))
            for receipt in Receipt.of_table(writer(table)):
                run.add(receipt)

    def verified(self) -> Verification:
        found = verify(self.root)
        assert found.is_good, found.table()
        return found

    def parts(self, folder: str = "data") -> list[Path]:
        return sorted(self.out.glob(f"{folder}/part-*.parquet"))

    def ids(self) -> list[str]:
        paths = [*self.parts("data"), *self.parts("errors")]
        return sorted(row_id for path in paths for row_id in pq.read_table(path).column(ROW_ID).to_pylist())

    def _data(self, mode: str, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
        data: dict[str, dict[str, Any]] = {
            "input": {"path": str(self.folder / "rows.parquet"), "id_column": "id", "image_columns": []},
            "model": {"path": "builtin:noop"},
            "output": {"path": str(self.out), "mode": mode},
        }
        for more in (self.sections, sections):
            for name, section in more.items():
                data[name] = {**data.get(name, {}), **section}
        return data


def _with_kept(records: Iterable[dict[str, Any]], kept: pa.Table, schema: pa.Schema) -> pa.Table:
    """Records with the input's own columns beside them."""
    records = list(records)
    columns = []
    for column in schema:
        if column.name in kept.column_names:
            columns.append(kept.column(column.name).cast(column.type))
        else:
            columns.append(pa.array([row.get(column.name) for row in records], column.type))
    assert {column.name for column in schema if column.name.startswith(INTERNAL_PREFIX)} <= {*records[0], WORKER}
    return pa.table(columns, schema=schema)
