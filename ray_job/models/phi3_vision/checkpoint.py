"""The safetensors files of a model folder: which they are, what they hold, and its tensors.

Only safetensors are read; a pickle (.bin, .pt) is refused, as loading one can execute code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ray_job.errors import ModelError
from ray_job.models.json_file import json_type, read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

_PICKLES = ("*.bin", "*.pt", "*.pth")
# Integers and 8-bit floats are weights of a quantised model: without its scales they mean nothing.
_DTYPES = ("F64", "F32", "F16", "BF16")
_ADVICE = "download the model's files again"


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor as the header of its file has it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """Weights in a folder, their headers read and compared with what the model asks for.

    Args:
        folder: of the model.
        expected: a tensor of the right shape by name; its data is not looked at.
        is_tied: whether the head is the token embedding. A file may then hold either of the two, or both if equal.

    Raises:
        ModelError: there are no such files, one is broken, or tensors do not fit: every missing, unexpected and wrongly
            shaped one is listed with its file.
    """

    def __init__(self, folder: Path, expected: Mapping[str, Tensor], is_tied: bool) -> None:
        self._is_tied = is_tied
        self._files = _weight_files(folder)
        self._found: dict[str, _Found] = {}
        problems: list[str] = []
        for file in self._files:
            for name, found in _header(file).items():
                if name in self._found:
                    problems.append(f"in two files, {self._found[name].file.name} and {file.name}: {name}")
                self._found[name] = found
                problems += _misfits(name, found, expected)
        problems += [f"missing: {name} {tuple(expected[name].shape)}" for name in expected if not self._has(name)]
        if problems:
            raise ModelError(_listing(folder, problems, is_tied))

    def tensors(self, dtype: torch.dtype, device: str | torch.device) -> dict[str, Tensor]:
        """All tensors by name, converted one by one: memory holds them once. A tied head is not among them.

        Raises:
            ModelError: a file cannot be read, or a tied head differs from the embedding.
        """
        weights: dict[str, Tensor] = {}
        for file in self._files:
            with _opened(file, str(device)) as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is no dict
                    weights[name] = opened.get_tensor(name).to(dtype)
        return self._without_tied_head(weights) if self._is_tied else weights

    def _without_tied_head(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        head = weights.pop(HEAD, None)
        if head is not None and not torch.equal(head, weights.setdefault(EMBEDDING, head)):
            raise ModelError(
                f"{self._found[HEAD].file}: {HEAD} is not {EMBEDDING}, though config.json says tie_word_embeddings: "
                f"true. Set it to false if the head was trained by itself, or remove {HEAD} from the file"
            )
        return weights

    def _has(self, name: str) -> bool:
        is_either = self._is_tied and name in (HEAD, EMBEDDING)
        return name in self._found or (is_either and (HEAD in self._found or EMBEDDING in self._found))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or those its index names."""
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


def _shards(index: Path) -> list[Path]:
    """The files an index names, each once. They lie beside it: no name leads out of the folder."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        kind = "absent" if weight_map is None else "empty" if weight_map == {} else f"a JSON {json_type(weight_map)}"
        raise ModelError(f"{index}: weight_map is {kind}; it must give a file for every tensor. {_ADVICE.capitalize()}")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise ModelError(
                f"{index}: weight_map gives {name!a:.80} for {tensor!a:.80}; it must be the name of a .safetensors "
                f"file in the same folder. {_ADVICE.capitalize()}"
            )
    names = sorted(set(weight_map.values()))
    try:
        missing = [name for name in names if not (index.parent / name).is_file()]
    except OSError as error:  # a name too long for the file system
        raise ModelError(f"{index}: a file it names cannot be looked for: {error}; {_ADVICE}") from None
    if missing:
        raise ModelError(f"{index} names files that are not there: {', '.join(missing)}; {_ADVICE}")
    return [index.parent / name for name in names]


def _is_plain_name(name: str) -> bool:
    return name.endswith(".safetensors") and name.isprintable() and not set(name) & set("/\\:")


def _header(file: Path) -> dict[str, _Found]:
    with _opened(file, "cpu") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: _Found(file, tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices.items()}


@contextmanager
def _opened(file: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device=device) as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a complete safetensors file ({error}); {_ADVICE}") from error


def _misfits(name: str, found: _Found, expected: Mapping[str, Tensor]) -> Iterator[str]:
    if name not in expected:
        yield f"unexpected in {found.file.name}: {name} {found.shape}"
        return
    shape = tuple(expected[name].shape)
    if found.shape != shape:
        yield f"shape in {found.file.name}: {name} is {found.shape}, not {shape}"
    if found.dtype not in _DTYPES:
        yield f"dtype in {found.file.name}: {name} is {found.dtype}; quantised weights are not read, use the original"


def _listing(folder: Path, problems: list[str], is_tied: bool) -> str:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    could_be_tied = not is_tied and len(problems) == 1 and problems[0].startswith(f"missing: {HEAD} ")
    hint = "\nIf the head is the token embedding, config.json lacks tie_word_embeddings: true." if could_be_tied else ""
    return (
        f"{folder}: {len(problems)} tensors do not fit config.json; use the weights and the config.json of one model\n"
        f"{lines}{hint}"
    )
