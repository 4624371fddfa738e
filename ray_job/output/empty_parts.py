"""`data/` and `errors/` are always there: where one has no rows, an empty part with the schema stands for them.

The ledger knows nothing of it. It holds no row, so that it is harmless beside parts that come later.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ray_job.arrow.column_types import empty_table
from ray_job.output.account import Account
from ray_job.output.ledger import Ledger
from ray_job.output.parts import DATA, ERRORS, write_part
from ray_job.storage.places import Location
from ray_job.storage.whole_files import part_files, remove

EMPTY_PART = "part-empty.parquet"


def settle_empty_parts(root: Location, ledger: Ledger, schema: pa.Schema) -> None:
    """Writes the empty part of a folder that has no other, and deletes one that is not needed any more.

    Raises:
        RayJobError: the storage refuses.
    """
    held = {part.folder for part in ledger.parts}
    for folder in (DATA, ERRORS):
        has_empty = any(info.base_name == EMPTY_PART for info in part_files(root, folder))
        if folder in held and has_empty:
            remove(root, [f"{folder}/{EMPTY_PART}"])
        if folder not in held and not has_empty:
            none = np.zeros(0, np.int64)
            write_part(root, f"{folder}/{EMPTY_PART}", empty_table(schema), Account(0, none, none, none))
