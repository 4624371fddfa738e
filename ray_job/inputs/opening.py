"""Reading input: from a spec to a `Source` of rows, decided from headers, listings and line counts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ray_job.errors import InputError, SpecError
from ray_job.inputs.documents.source import open_documents
from ray_job.inputs.files import InputFiles, find_files
from ray_job.inputs.formats.folders.images import open_images
from ray_job.inputs.formats.tables.arrow import open_arrow
from ray_job.inputs.formats.tables.delta import open_delta
from ray_job.inputs.formats.tables.hf import open_hf
from ray_job.inputs.formats.tables.iceberg import open_iceberg
from ray_job.inputs.formats.tables.lance import open_lance
from ray_job.inputs.formats.tables.parquet import open_parquet
from ray_job.inputs.formats.text.csv_table import open_csv
from ray_job.inputs.formats.text.jsonl import open_json
from ray_job.inputs.formats.webdataset.source import open_webdataset
from ray_job.inputs.skipped import Skipped
from ray_job.inputs.source import Source, Split, iter_tables
from ray_job.inputs.video.source import open_video
from ray_job.redaction.text import public_uri
from ray_job.spec import InputSpec, JobSpec
from ray_job.spec.input import Format

_OPENERS: dict[Format, Callable[[JobSpec, InputFiles], Source]] = {
    "parquet": open_parquet,
    "images": open_images,
    "jsonl": open_json,
    "json": open_json,
    "csv": open_csv,
    "tsv": open_csv,
    "documents": open_documents,
    "video": open_video,
    "arrow": open_arrow,
    "hf": open_hf,
    "webdataset": open_webdataset,
    "delta": open_delta,
    "iceberg": open_iceberg,
    "lance": open_lance,
}

_SKIPPED_TABLES = {f"of format {name}" for name in _OPENERS if name not in ("images", "documents", "video")}

__all__ = ["Source", "Split", "iter_tables", "open_source"]


def open_source(spec: JobSpec) -> Source:
    """Finds the input's files, decides their format, checks the spec against their columns, and plans the reading.

    Raises:
        InputError: there is nothing to read, or a file cannot be read at all.
        SpecError: named columns are missing or cannot be used; every problem at once.
    """
    found = find_files(spec.input)
    _check_options(spec.input, found.format)
    try:
        source = _OPENERS[found.format](spec, found)
    except SpecError as error:
        tables = [group for group in found.skipped.groups if group.reason in _SKIPPED_TABLES]
        if not tables:
            raise
        hint = f"input.format: read are {found}, and not {Skipped(tuple(tables)).text()}; set it if these hold the rows"
        raise SpecError([*error.problems, hint], error.source) from None
    if source.num_rows == 0:
        where = ", ".join(map(public_uri, spec.input.path))
        raise InputError(f"{where}: no rows in {found}; check input.path")
    taken = str(found) if source.version is None else f"the {found.format} table, version {source.version}"
    return replace(source, taken=taken)


def _check_options(spec: InputSpec, format_: Format) -> None:
    """What is set for another format than the input's would have no effect.

    Raises:
        SpecError: naming it.
    """
    tables: tuple[Format, ...] = ("csv", "tsv", "images")
    used: dict[str, tuple[Format, ...]] = {
        "encoding": (*tables, "jsonl", "json"),
        "delimiter": tables,
        "column_names": ("csv", "tsv"),
        "column_types": tables,
        "split": ("hf",),
        "version": ("delta", "iceberg", "lance"),
    }
    problems = [
        f"input.{name}: has no effect on {format_}; leave it out"
        for name, formats in used.items()
        if getattr(spec, name) is not None and format_ not in formats
    ]
    if problems:
        raise SpecError(problems, "input")
