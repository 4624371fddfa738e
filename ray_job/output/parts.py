"""Writes results as Parquet parts, each visible whole or not at all.

A part's name is a hash of its rows' places in the input, so a task that Ray runs twice writes the same file twice.
Answered rows go to `data/`, failed ones to `errors/`, under the same name and the same schema.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_job.output.files import write_whole
from ray_job.rows import POSITION, QUESTION_INDEX, Status
from ray_job.storage import Location

DATA, ERRORS = "data", "errors"

RECEIPT_SCHEMA = pa.schema([("receipt", pa.string())])


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one committed part holds; all that travels back to the driver."""

    name: str
    rows: int  # input rows; a row with several questions counts once
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    error_codes: dict[str, int] = field(default_factory=dict)
    write_s: float = 0.0

    @classmethod
    def of_table(cls, table: pa.Table) -> list[Receipt]:
        """The receipts in what a `PartWriter` returned."""
        return [cls(**json.loads(text)) for text in table.column("receipt").to_pylist()]


class PartWriter:
    """Commits batches of results under an output folder.

    Args:
        root: the output folder.
        schema: of the results (`rows.output_schema`).
    """

    def __init__(self, root: Location, schema: pa.Schema) -> None:
        self._root = root
        self._schema = schema

    def __call__(self, table: pa.Table) -> pa.Table:
        """A batch of results (`rows.result_schema`) → one receipt, once both files are there."""
        if table.num_rows == 0:
            return RECEIPT_SCHEMA.empty_table()
        started_s = time.monotonic()
        table = table.sort_by(
            [(name, "ascending") for name in (POSITION, QUESTION_INDEX) if name in table.column_names]
        )
        name = part_name(table)
        table = table.select(self._schema.names).cast(self._schema)
        is_answered = pc.equal(table.column("status"), str(Status.OK))
        answered, failed = table.filter(is_answered), table.filter(pc.invert(is_answered))
        for folder, rows in ((ERRORS, failed), (DATA, answered)):
            if rows.num_rows:
                self._write(f"{folder}/{name}", rows)
        usage = pc.struct_field(answered.column("usage"), [0]), pc.struct_field(answered.column("usage"), [1])
        receipt = Receipt(
            name=name,
            rows=_num_input_rows(table),
            answered=answered.num_rows,
            failed=failed.num_rows,
            prompt_tokens=pc.sum(usage[0]).as_py() or 0,
            completion_tokens=pc.sum(usage[1]).as_py() or 0,
            error_codes=dict(Counter(error["code"] for error in failed.column("error").to_pylist())),
            write_s=time.monotonic() - started_s,
        )
        return pa.table({"receipt": [json.dumps(asdict(receipt))]}, schema=RECEIPT_SCHEMA)

    def _write(self, name: str, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        write_whole(self._root, name, sink.getvalue())


def part_name(table: pa.Table) -> str:
    """A name made from the places of a part's rows alone."""
    digest = hashlib.blake2b(digest_size=10)
    for column in (POSITION, QUESTION_INDEX):
        if column in table.column_names:
            digest.update(table.column(column).to_numpy().tobytes())
    return f"part-{digest.hexdigest()}.parquet"


def count_part(part: Location) -> int:
    """Rows of a committed part, from its footer alone."""
    with part.filesystem.open_input_file(part.path) as stream:
        return int(pq.read_metadata(stream).num_rows)


def _num_input_rows(table: pa.Table) -> int:
    if QUESTION_INDEX not in table.column_names:
        return int(table.num_rows)
    return int(pc.sum(pc.equal(table.column(QUESTION_INDEX), 0)).as_py() or 0)
