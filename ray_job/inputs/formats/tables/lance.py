"""Rows of Lance data sets, read by `lance` itself, which leaves out deleted rows.

A row's id is `fragment#offset`, deleted rows counted too: as Lance has it, an address that stays until the fragment is
rewritten. Lance reads ahead within a scan, so a scan is asked for as many rows as make up a piece, by their size on
average.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_job.errors import InputError
from ray_job.inputs.columns import Found, choose_roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.formats.tables.damaged import PIECE_ROWS, Group, iter_rows
from ray_job.inputs.formats.tables.row_groups import PIECE_BYTES, iter_bounded
from ray_job.inputs.formats.tables.schemas import unify
from ray_job.inputs.formats.tables.table_source import Rows, TableSource, TableSplit
from ray_job.redaction.text import without_parts_of
from ray_job.spec import JobSpec
from ray_job.storage.object_store import library_uri, storage_options
from ray_job.storage.places import Location, reason

SPLIT_BYTES = 32 * 2**20
SPLIT_ROWS = 4096
_ADDRESS = "_rowaddr"
_DAMAGE = re.compile(
    "corrupt file|Invalid user input|Schema error|failed to decode Protobuf|failed to fill whole buffer|panicked with"
)


@dataclass(frozen=True, slots=True)
class LanceSplit(TableSplit):
    """Neighbouring rows of one fragment; `first_row` counts those that are not deleted."""

    fragment: int
    row_bytes: int  # about how much a row takes


@dataclass(frozen=True)
class LanceSource(TableSource):
    """Rows of one version of a Lance data set."""

    options: Mapping[str, str] = field(repr=False)  # of its storage; may hold secrets

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """See `TableSource.batches`."""
        assert isinstance(split, LanceSplit)
        try:
            data = _open_version(library_uri(split.location), self.version, self.options)
            fragment = data.get_fragment(split.fragment)
            columns = [name for name in names if name in data.schema.names]
            step = max(1, PIECE_BYTES // max(1, split.row_bytes))  # a scan reads ahead, whatever its batches
            for start in range(split.first_row, split.first_row + split.num_rows, step):
                limit = min(step, split.first_row + split.num_rows - start)
                read = partial(_scanned, fragment, start=start, limit=limit)
                group = Group(split, f"fragment {split.fragment}", start, limit, read, _is_damage)
                yield from map(_named, iter_rows(group, columns, self.id_column, max_rows))
        except InputError:
            raise
        except Exception as error:  # lance raises what its storage and its decoders do
            raise InputError(
                f"{split.location}: fragment {split.fragment} cannot be read: {reason(error)}. If a file is damaged or "
                "was cleaned up, choose another input.version; if the storage failed, run the job again"
            ) from None


def open_lance(spec: JobSpec, found: InputFiles) -> LanceSource:
    """Resolves the version and plans its rows.

    Raises:
        InputError: `lance` is missing, the data set cannot be read, or there is no such version.
        SpecError: the spec does not fit the columns.
    """
    (uri, *_) = spec.input.path
    options = storage_options(uri, found.root, spec.input.storage_options)
    version = spec.input.version
    asked = int(version) if version is not None and str(version).isdecimal() else version
    try:
        data = _open_version(library_uri(found.root), asked, options)
        schema = data.schema
        splits = [split for fragment in data.get_fragments() for split in _plan_splits(found.root, fragment)]
    except ImportError:
        raise InputError(
            f"{found.root} is a Lance data set, and lance is missing: pip install 'ray_job[lance]'"
        ) from None
    except Exception as error:  # as above
        shown = "" if version is None else f", version {version}"
        raise InputError(f"{found.root}{shown}: cannot be opened: {without_parts_of(uri, reason(error))}") from None
    columns, clashes = unify([(str(found.root), schema)])
    roles = choose_roles(spec, Found(columns, clashes=clashes), "input")
    return LanceSource.planned(
        spec, found, columns, roles, splits, id_column=roles.id, version=data.version, options=options
    )


def _open_version(uri: str, version: int | str | None, options: Mapping[str, str]) -> Any:
    import lance

    return lance.dataset(uri, version=version, storage_options=dict(options) or None)


def _plan_splits(root: Location, fragment: Any) -> Iterator[LanceSplit]:
    num_rows = fragment.count_rows()
    num_bytes = sum(file.file_size_bytes or 0 for file in fragment.data_files())
    row_bytes = num_bytes // max(1, fragment.physical_rows)
    step = max(1, min(SPLIT_ROWS, SPLIT_BYTES // max(1, row_bytes)))
    for start in range(0, num_rows, step):
        size = min(step, num_rows - start)
        name = str(fragment.fragment_id)
        yield LanceSplit(name, size, size * row_bytes, root, start, fragment.fragment_id, row_bytes)


def _scanned(fragment: Any, columns: Sequence[str], start: int, limit: int) -> Iterator[pa.RecordBatch]:
    """Rows of a fragment that are not deleted, with their addresses."""
    scanner = fragment.scanner(
        columns=list(columns),
        with_row_address=True,
        offset=start,
        limit=limit,
        batch_size=min(limit, PIECE_ROWS),
        batch_readahead=1,
        io_buffer_size=PIECE_BYTES,
        blob_handling="all_binary",
    )
    for batch in scanner.to_batches():
        yield from iter_bounded(batch, PIECE_ROWS)


def _is_damage(error: Exception) -> bool:
    """As `lance` words it, whose errors are of one type; what its storage fails at, and all else, is not."""
    return _DAMAGE.search(str(error)) is not None


def _named(rows: Rows) -> Rows:
    if _ADDRESS not in rows.batch.schema.names:
        return rows
    return replace(rows, batch=rows.batch.drop_columns(_ADDRESS), made_ids=_made_ids(rows.batch))


def _made_ids(batch: pa.RecordBatch) -> pa.Array:
    addresses = batch.column(_ADDRESS).to_numpy()
    pairs = zip(addresses >> np.uint64(32), addresses & np.uint64(0xFFFFFFFF), strict=True)
    return pa.array([f"{fragment}#{offset}" for fragment, offset in pairs], pa.string())
