"""Single rows of an input by their number, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from ray_job.arrow.column_types import empty_table
from ray_job.inputs.source import Source

_TABLE_ROWS = 256


def pick_rows(source: Source, numbers: Iterable[int]) -> pa.Table:
    """The rows with these numbers, in their order over the whole input, each once; `Source.schema`.

    Numbers count the source's rows from 0; those beyond its end are left out. A split that holds a wanted row is read
    from its start to the last one wanted, the others are not opened.

    Raises:
        InputError: a file cannot be read.
    """
    wanted = sorted(set(numbers))
    picked = [empty_table(source.schema)]
    stop = 0
    for split in source.splits:
        start, stop = stop, stop + split.num_rows
        inside = [number for number in wanted if start <= number < stop]
        if not inside:
            continue
        for table in source.read(split, _TABLE_ROWS):
            here = [number - start for number in inside if start <= number < start + table.num_rows]
            if here:
                picked.append(table.take(pa.array(here)))
            start += table.num_rows
            if start > inside[-1]:
                break
    return pa.concat_tables(picked).combine_chunks()
