"""The last stage: batches of results become committed parts, and a receipt of each goes to the driver.

A part's name is made of the run's number and a hash of its rows' numbers: a task that Ray runs twice writes the same
file twice, and no run ever overwrites another's.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.column_types import with_types
from ray_job.output.account import Account
from ray_job.output.parts import DATA, ERRORS, RECEIPT_SCHEMA, Receipt, write_part
from ray_job.rows import ATTEMPTS, POSITION, QUESTION_INDEX, WORKER, Status
from ray_job.storage.places import Location


class PartWriter:
    """Commits batches of results under an output folder.

    Args:
        root: the output folder.
        schema: of the results (`rows.output_schema`).
        run: the run's number in this folder.
    """

    def __init__(self, root: Location, schema: pa.Schema, run: int = 1) -> None:
        self._root = root
        self._schema = schema
        self._run = run

    def __call__(self, table: pa.Table) -> pa.Table:
        """A batch of results (`rows.result_schema`) → one receipt, once both files are there."""
        if table.num_rows == 0:
            return RECEIPT_SCHEMA.empty_table()
        started_s = time.monotonic()
        table = _sorted(table)
        attempts = pc.add(table.column("attempts"), table.column(ATTEMPTS))
        table = table.set_column(table.column_names.index("attempts"), "attempts", attempts)
        name = f"part-{self._run:04}-{_hash(table)}.parquet"
        is_answered = pc.equal(table.column("status"), str(Status.OK))
        answered, failed = table.filter(is_answered), table.filter(pc.invert(is_answered))
        for folder, rows in ((ERRORS, failed), (DATA, answered)):
            if rows.num_rows:
                account = Account.of_results(rows, self._run)
                write_part(self._root, f"{folder}/{name}", with_types(rows, self._schema), account)
        whole = Account.of_results(table, self._run)
        num_rows, partial_rows = _partial_rows(whole)
        receipt = Receipt(
            name=name,
            rows=num_rows,
            partial_rows=partial_rows,
            answered=answered.num_rows,
            failed=failed.num_rows,
            prompt_tokens=whole.prompt_tokens,
            completion_tokens=whole.completion_tokens,
            error_codes=whole.error_codes,
            unparsed=whole.unparsed,
            write_s=time.monotonic() - started_s,
            **_news(table),
        )
        return pa.table({"receipt": [json.dumps(asdict(receipt))]}, schema=RECEIPT_SCHEMA)


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in (POSITION, QUESTION_INDEX) if name in table.column_names])


def _hash(table: pa.Table) -> str:
    """Of the rows' and questions' numbers alone."""
    digest = hashlib.blake2b(digest_size=10)
    for column in (POSITION, QUESTION_INDEX):
        if column in table.column_names:
            digest.update(table.column(column).to_numpy().tobytes())
    return digest.hexdigest()


def _news(table: pa.Table) -> dict[str, Any]:
    """What a batch says of its actors (`rows.WORKER`): the last news of each, and the engine that they run."""
    latest: dict[str, dict[str, float]] = {}
    engine: dict[str, str | None] = {}
    for text in table.column(WORKER).drop_null().to_pylist():
        news = json.loads(text)
        known = latest.get(news["actor"])
        if known is None or news["done"]["prepare_s"] >= known["prepare_s"]:
            latest[news["actor"]] = news["done"]
        engine = {name: news[name] for name in ("engine", "engine_reason") if name in news}
    return {"actors": latest, **engine}


def _partial_rows(account: Account) -> tuple[int, list[tuple[int, int, int]]]:
    """How many input rows are whole here, and `Receipt.partial_rows` of the others."""
    positions, starts, num_records = np.unique(account.positions, return_index=True, return_counts=True)
    num_questions = account.num_questions[starts]
    is_partial = num_records < num_questions
    columns = (values[is_partial].tolist() for values in (positions, num_records, num_questions))
    return int(np.count_nonzero(~is_partial)), list(zip(*columns, strict=True))
