"""Rows of WebDataset shards (`.tar`, `.tar.gz`): a sample is a row, called `shard.tar/key`.

A sample without a picture is a row that fails later, as any row whose picture is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from ray_job.inputs.columns import Found, choose_roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.formats.tables.row_groups import PIECE_BYTES
from ray_job.inputs.formats.tables.table_source import Rows, TableSource, TableSplit
from ray_job.inputs.formats.webdataset.sample_columns import (
    JSON,
    KEY,
    MAX_KEYS,
    URL,
    Keys,
    SampleColumns,
    sample_columns,
)
from ray_job.inputs.formats.webdataset.samples import Sample, iter_samples
from ray_job.inputs.formats.webdataset.shards import Shard, ShardSplit, walk
from ray_job.inputs.formats.webdataset.tar_members import iter_members, open_tar
from ray_job.inputs.skipped import Skipped, SkippedFiles
from ray_job.inputs.source import malformed
from ray_job.redaction.logs import logger_of
from ray_job.rows import ERROR_TYPE, error_record
from ray_job.spec import JobSpec

_LOG = logger_of(__name__)
_THREADS = 8


@dataclass(frozen=True)
class WebDatasetSource(TableSource):
    """Rows of WebDataset shards."""

    samples: SampleColumns
    max_member_bytes: int

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """See `TableSource.batches`."""
        assert isinstance(split, ShardSplit)
        wanted = self.samples.wanted(names)
        held: list[Sample] = []
        num_bytes = 0
        with open_tar(split.location) as reader:
            members = iter_members(reader, split.start, split.stop)
            for sample in iter_samples(reader, members, wanted.__contains__, self.max_member_bytes):
                held.append(sample)
                num_bytes += sum(len(content or b"") for content in sample.fields.values())
                if len(held) == max_rows or num_bytes >= PIECE_BYTES:
                    yield self._rows(held, split, names)
                    held, num_bytes = [], 0
        if held:
            yield self._rows(held, split, names)

    def _rows(self, samples: Sequence[Sample], split: ShardSplit, names: Sequence[str]) -> Rows:
        ids = []
        for sample in samples:
            times, problem = split.repeated.get(sample.offset, (0, None))
            ids.append(f"{split.name}{sample.name}" + (f"#{times}" if times else ""))
            if problem is not None:
                sample.fail(malformed(problem))
        self.samples.check_pictures(samples, self.image_columns)
        arrays = self.samples.arrays(samples, str(split.location), [KEY, *names])  # one column tells how many rows
        errors = [None if sample.error is None else error_record(sample.error) for sample in samples]
        return Rows(pa.RecordBatch.from_pydict(arrays), pa.array(ids, pa.string()), pa.array(errors, ERROR_TYPE))


def open_webdataset(spec: JobSpec, found: InputFiles) -> WebDatasetSource:
    """Walks the shards and plans the splits.

    Raises:
        InputError: a file is no tar archive.
        SpecError: the spec does not fit the columns.
    """
    max_bytes = spec.limits.max_image_bytes
    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(lambda file: walk(file, max_bytes), found.files))
    keys = Keys()
    for shard in shards:
        keys.merge(shard.keys)
    if keys.is_full:
        _LOG.warning("the samples' JSON has more than %d keys: the others are in the column 'json' only", MAX_KEYS)
    columns = sample_columns((layout for shard in shards for layout in shard.layouts), keys)
    columns = columns.with_text_id(spec.input.id_column)
    not_kept = (URL, *(JSON if columns.keys else ()))
    roles = choose_roles(spec, Found(columns.schema, image_columns=columns.image_columns, not_kept=not_kept), "input")
    splits = [split for shard in shards for split in shard.splits]
    found = replace(found, skipped=Skipped((*found.skipped.groups, *_loose(shards))))
    return WebDatasetSource.planned(
        spec, found, columns.schema, roles, splits, id_column=roles.id, samples=columns, max_member_bytes=max_bytes
    )


def _loose(shards: Sequence[Shard]) -> list[SkippedFiles]:
    """Members that belong to no sample, since their names have nothing before a first dot, or nothing behind it."""
    num_members = sum(shard.loose.num_members for shard in shards)
    examples = tuple(shard.loose.example for shard in shards if shard.loose.num_members)[:3]
    return [SkippedFiles("members of shards that belong to no sample", num_members, examples)] if num_members else []
