"""Reading input: from a spec to a `Source` of rows, decided from headers, listings and line counts alone."""

from __future__ import annotations

from collections.abc import Callable

from ray_job.errors import InputError, SpecError
from ray_job.inputs.files import Format, InputFiles, find_files
from ray_job.inputs.formats.arrow import open_arrow
from ray_job.inputs.formats.delta import open_delta
from ray_job.inputs.formats.hf import open_hf
from ray_job.inputs.formats.iceberg import open_iceberg
from ray_job.inputs.formats.images import open_images
from ray_job.inputs.formats.jsonl import open_jsonl
from ray_job.inputs.formats.lance import open_lance
from ray_job.inputs.formats.parquet import open_parquet
from ray_job.inputs.formats.webdataset import open_webdataset
from ray_job.inputs.source import Source, Split, iter_tables
from ray_job.redaction.text import public_uri
from ray_job.spec import JobSpec

_OPENERS: dict[Format, Callable[[JobSpec, InputFiles], Source]] = {
    "parquet": open_parquet,
    "images": open_images,
    "jsonl": open_jsonl,
    "arrow": open_arrow,
    "hf": open_hf,
    "webdataset": open_webdataset,
    "delta": open_delta,
    "iceberg": open_iceberg,
    "lance": open_lance,
}

__all__ = ["Source", "Split", "iter_tables", "open_source"]


def open_source(spec: JobSpec) -> Source:
    """Finds the input's files, decides their format, checks the spec against their columns, and plans the reading.

    Raises:
        InputError: there is nothing to read, or a file cannot be read at all.
        SpecError: named columns are missing or cannot be used; every problem at once.
    """
    found = find_files(spec.input)
    _check_asked(spec, found.format)
    source = _OPENERS[found.format](spec, found)
    if source.num_rows == 0:
        where = ", ".join(map(public_uri, spec.input.path))
        raise InputError(f"{where}: no rows in {len(found.files)} {found.format} files; check input.path")
    return source


def _check_asked(spec: JobSpec, format_: Format) -> None:
    """Whether a version or a split is asked of what has them."""
    problems = []
    if spec.input.version is not None and format_ not in ("delta", "iceberg", "lance"):
        problems.append(f"input.version: has no effect on {format_}; leave it out")
    if spec.input.split is not None and format_ != "hf":
        problems.append(f"input.split: has no effect on {format_}; leave it out")
    if problems:
        raise SpecError(problems, "input")
