"""The safetensors files of a model folder: which they are, and what their headers say.

Only safetensors are read; a pickle (.bin, .pt) is refused, as loading one can execute code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ray_job.errors import ModelError
from ray_job.models.json_file import json_type, read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADVICE = "download the model's files again"

_PICKLES = ("*.bin", "*.pt", "*.pth")
# Integers and 8-bit floats are weights of a quantised model: without its scales they mean nothing.
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor as the header of its file has it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or those its index names.

    Raises:
        ModelError: there are none, or not all that the index names.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return _shards(folder / INDEX)
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds weights only as {', '.join(pickles)}. These are pickles, which can execute code "
            f"when they are read; convert them to {SINGLE} with safetensors.torch.save_file"
        )
    raise ModelError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def header(file: Path) -> dict[str, Found]:
    """A file's tensors by name, without their data.

    Raises:
        ModelError: it is no whole safetensors file.
    """
    with opened(file, "cpu") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
        return {name: Found(file, tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices.items()}


@contextmanager
def opened(file: Path, device: str) -> Iterator[Any]:
    """The file as safetensors opens it, its pages mapped. Raises ModelError where it is broken."""
    try:
        with safe_open(file, framework="pt", device=device) as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a complete safetensors file ({error}); {ADVICE}") from error


def _shards(index: Path) -> list[Path]:
    """The files an index names, each once. They lie beside it: no name leads out of the folder."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        kind = "absent" if weight_map is None else "empty" if weight_map == {} else f"a JSON {json_type(weight_map)}"
        raise ModelError(f"{index}: weight_map is {kind}; it must give a file for every tensor. {ADVICE.capitalize()}")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise ModelError(
                f"{index}: weight_map gives {name!a:.80} for {tensor!a:.80}; it must be the name of a .safetensors "
                f"file in the same folder. {ADVICE.capitalize()}"
            )
    names = sorted(set(weight_map.values()))
    try:
        missing = [name for name in names if not (index.parent / name).is_file()]
    except OSError as error:  # a name too long for the file system
        raise ModelError(f"{index}: a file it names cannot be looked for: {error}; {ADVICE}") from None
    if missing:
        raise ModelError(f"{index} names files that are not there: {', '.join(missing)}; {ADVICE}")
    return [index.parent / name for name in names]


def _is_plain_name(name: str) -> bool:
    return name.endswith(".safetensors") and name.isprintable() and not set(name) & set("/\\:")
