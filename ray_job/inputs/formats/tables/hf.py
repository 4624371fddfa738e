"""Hugging Face data sets as `save_to_disk` leaves them: Arrow streams, in the order that `state.json` lists.

`datasets` itself is not needed. Of a saved `DatasetDict`, `input.split` says which data set of it holds the rows.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import replace
from typing import Any

from ray_job.errors import InputError, SpecError
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.arrow import ArrowSource, open_arrow
from ray_job.prompts.conversation import nearest
from ray_job.spec import JobSpec
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

_STATE, _DICT = "state.json", "dataset_dict.json"


def open_hf(spec: JobSpec, found: InputFiles) -> ArrowSource:
    """Plans the rows of the data set, or of the split asked for.

    Raises:
        InputError: the folder is not whole.
        SpecError: the spec does not fit the columns, or which split is meant is not said.
    """
    files = {file.name: file for file in found.files}
    split = _split(spec.input.split, files, found.root)
    state = files.get(posixpath.join(split, _STATE))
    if state is None:
        raise InputError(
            f"{found.root}: no {posixpath.join(split, _STATE)}; it is not what save_to_disk leaves. Check input.path"
        )
    content = _json(state.location)
    if content.get("_indices_data_files"):
        raise InputError(
            f"{found.root}: its rows are chosen by indices beside it, as old releases of `datasets` saved them. Save "
            "it again: load_from_disk(path).flatten_indices().save_to_disk(other)"
        )
    try:
        names = [posixpath.join(split, entry["filename"]) for entry in content["_data_files"]]
    except (KeyError, TypeError):
        raise InputError(f"{state.location}: does not list the data's files; save the data set again") from None
    missing = [name for name in names if name not in files]
    if missing:
        raise InputError(f"{found.root}: {missing[0]} is not there, and {_STATE} lists it; copy the folder whole")
    return open_arrow(spec, replace(found, files=tuple(files[name] for name in names)))


def _split(wanted: str | None, files: dict[str, InputFile], root: Location) -> str:
    """The folder of the split asked for; "" for a data set without splits."""
    if _DICT not in files:
        if wanted is not None:
            raise SpecError([f"input.split: {root} is a data set without splits; leave it out"], "input")
        return ""
    names = [str(name) for name in _json(files[_DICT].location).get("splits", [])]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        listed = ", ".join(names)
        hint = "set it" if wanted is None else f"no {wanted!r}; {nearest(wanted, names)}"
        raise SpecError([f"input.split: {root} has the splits {listed}; {hint}"], "input")
    return wanted


def _json(location: Location) -> dict[str, Any]:
    try:
        with open_input(location) as handle:
            content = json.loads(handle.read())
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except (*STORAGE_ERRORS, ValueError) as error:
        raise InputError(f"{location}: cannot be read as JSON: {reason(error)}") from None
