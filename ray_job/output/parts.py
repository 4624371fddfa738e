"""A part: what its receipt says, and one Parquet file that is visible whole or not at all.

Answered rows go to `data/` and failed rows to `errors/`, under the same name and with the same schema. The footer of
each file says which rows it holds (`account.py`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from ray_job.arrow.column_types import stored_field
from ray_job.output.account import FOOTER_KEY, Account
from ray_job.storage.places import Location
from ray_job.storage.whole_files import write_whole

DATA, ERRORS = "data", "errors"

_ARROW_SCHEMA = b"ARROW:schema"  # Arrow's own key in a Parquet footer
RECEIPT_SCHEMA = pa.schema([("receipt", pa.string())])


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one committed part holds; all that travels back to the driver."""

    name: str
    rows: int  # input rows of which it holds every question
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    error_codes: dict[str, int] = field(default_factory=dict)
    unparsed: dict[str, int] = field(default_factory=dict)  # as in its account
    write_s: float = 0.0
    actors: dict[str, dict[str, float]] = field(default_factory=dict)  # what each had done by then
    engine: str | None = None  # that the actors run
    engine_reason: str | None = None  # where it is not the one that is chosen if nothing speaks against it
    # Of each row whose other questions lie elsewhere: its number, its records here, its questions in all.
    partial_rows: list[tuple[int, int, int]] = field(default_factory=list)

    @classmethod
    def of_table(cls, table: pa.Table) -> list[Receipt]:
        """The receipts in what a `PartWriter` returned."""
        # Ray may hand over an empty block without columns.
        texts = table.column("receipt").to_pylist() if table.num_rows else []
        return [cls(**json.loads(text)) for text in texts]


def write_part(root: Location, name: str, rows: pa.Table, account: Account) -> None:
    """Writes one Parquet file with its account in the footer."""
    sink = pa.BufferOutputStream()
    footer: Mapping[str, str] = {FOOTER_KEY: account.to_footer()}
    with pq.ParquetWriter(sink, rows.schema, compression="zstd", write_page_checksum=True) as writer:
        if rows.num_rows:  # a row group without rows is more than some readers take
            writer.write_table(rows)
        writer.add_key_value_metadata(footer)
    write_whole(root, name, sink.getvalue())


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that a part written with this one is read back with.

    Parquet has no times in seconds and no dates in milliseconds, and names the items of lists itself.
    """
    return pa.schema([stored_field(field) for field in schema])


def written_schema(metadata: pq.FileMetaData) -> pa.Schema:
    """The schema a part was written with, as its footer tells; what it is read back with where the footer does not."""
    text = (metadata.metadata or {}).get(_ARROW_SCHEMA)
    return metadata.schema.to_arrow_schema().remove_metadata() if text is None else _parsed_schema(text)


@lru_cache(maxsize=16)  # the parts of an output share it
def _parsed_schema(text: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))).remove_metadata()
