"""Finds the rows of an earlier input again by their ids, for an input that is not identical to it.

An id is matched as often as it occurs: if earlier inputs had it twice, the first two rows that have it now are those
rows, and a third is new. Ids are compared by 128-bit hashes.

Only a job whose input has changed pays for this. Each machine holds 24 bytes for each id of the output, and the driver
24 for each row found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_job.arrow.column_types import carried_type, stored_field
from ray_job.inputs.source import Source
from ray_job.output.account import Ints
from ray_job.output.compaction import read_part
from ray_job.output.ledger import Ledger
from ray_job.rows import POSITION, ROW_ID

Hashes = npt.NDArray[np.bytes_]  # 16 bytes each
_HASH_TYPE = np.dtype("S16")
_HASH_FIELD = pa.field("hash", pa.binary(16))


@dataclass(frozen=True)
class KnownRows:
    """Ids of rows in the output, with the rows' numbers; sorted by hash, then number."""

    hashes: Hashes
    positions: Ints

    @classmethod
    def of_ledger(cls, ledger: Ledger, before: int | None = None, share: tuple[int, int] = (0, 1)) -> KnownRows:
        """The rows numbered below `before`; of these only a share of the hashes, `(which, of how many)`."""
        hashes, positions = [np.zeros(0, _HASH_TYPE)], [np.zeros(0, np.int64)]
        for part in ledger.parts:
            numbers, first = np.unique(part.account.positions, return_index=True)
            if before is not None:
                first, numbers = first[numbers < before], numbers[numbers < before]
            if len(numbers):
                found = hash_ids(read_part(part, [ROW_ID]).column(ROW_ID))[first]
                is_ours = found.view(np.uint8).reshape(-1, _HASH_TYPE.itemsize)[:, 0] % share[1] == share[0]
                hashes.append(found[is_ours])
                positions.append(numbers[is_ours])
        all_hashes, all_positions = np.concatenate(hashes), np.concatenate(positions)
        # A row may lie in several parts: its error of one run, its answer of another.
        _, first = np.unique(all_positions, return_index=True)
        order = first[np.lexsort((all_positions[first], all_hashes[first]))]
        return cls(all_hashes[order], all_positions[order])

    def has(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these ids are known."""
        if not len(self.hashes):
            return np.zeros(len(hashes), dtype=np.bool_)
        places = np.searchsorted(self.hashes, hashes)
        found: npt.NDArray[np.bool_] = self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes
        return found

    def match(self, hashes: Hashes, rows: Ints) -> tuple[Ints, Ints]:
        """The rows of an input that are known, and their numbers in the output; each known row is matched at most once.

        Args:
            hashes: of ids that `has` found to be known.
            rows: the index of each in the input.
        """
        order = np.lexsort((rows, hashes))
        hashes, rows = hashes[order], rows[order]
        ranks = np.arange(len(hashes)) - np.searchsorted(hashes, hashes)
        places = np.searchsorted(self.hashes, hashes) + ranks
        is_match = places < np.searchsorted(self.hashes, hashes, side="right")
        return rows[is_match], self.positions[places[is_match]]


class FindKnown:
    """A stage that finds the known rows of an input: rows with POSITION and id → POSITION and hash of those known.

    Args:
        known: `KnownRows` in the object store, in a list so that Ray hands on the reference.
    """

    def __init__(self, known: list[Any]) -> None:
        self._known = known

    def __call__(self, table: pa.Table) -> pa.Table:
        """See the class."""
        import ray

        known: KnownRows = ray.get(self._known[0])
        hashes = hash_ids(table.column(ROW_ID))
        is_known = known.has(hashes)
        positions = table.column(POSITION).to_numpy()[is_known]
        return pa.table({POSITION: positions, "hash": pa.array(_bytes(hashes[is_known]), _HASH_FIELD.type)})


def match_input(source: Source, known: KnownRows) -> tuple[Ints, Ints]:
    """Reads the input's ids on the cluster and finds the known rows among them: `KnownRows.match`."""
    import ray

    from ray_job.inputs.datasource import RowDatasource

    ids_only = replace(source, columns=pa.schema([]), image_columns=())
    found = ray.data.read_datasource(RowDatasource(ids_only)).map_batches(
        FindKnown([ray.put(known)]), batch_size=None, batch_format="pyarrow"
    )
    tables = list(found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    hashes = [np.frombuffer(b"".join(table.column("hash").to_pylist()), _HASH_TYPE) for table in tables]
    rows = [table.column(POSITION).to_numpy() for table in tables]
    return known.match(
        np.concatenate([np.zeros(0, _HASH_TYPE), *hashes]), np.concatenate([np.zeros(0, np.int64), *rows])
    )


def hash_ids(ids: pa.ChunkedArray) -> Hashes:
    """128-bit hashes of ids of one type, the same for an input's and for those that Parquet gives back."""
    ids = ids.cast(carried_type(stored_field(pa.field(ROW_ID, ids.type)).type))
    if pa.types.is_temporal(ids.type):  # as numbers: Python cannot hold all of Arrow's times
        ids = ids.cast(pa.int32() if ids.type.bit_width == 32 else pa.int64())
    return np.frombuffer(b"".join(_digests(ids.to_pylist())), _HASH_TYPE)


def _digests(ids: Iterable[Any]) -> Iterator[bytes]:
    for value in ids:
        data = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
        yield hashlib.blake2b(data, digest_size=16).digest()


def _bytes(hashes: Hashes) -> list[bytes]:
    """The hashes whole: numpy drops zeros from the end of a byte string."""
    return [value.ljust(16, b"\0") for value in hashes.tolist()]
