"""What a model folder's safetensors files hold, compared with what the model asks for, and their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ray_job.errors import ModelError
from ray_job.models.safetensors_files import PLAIN_DTYPES, SINGLE, Found, header, opened, weight_files

__all__ = ["EMBEDDING", "HEAD", "SINGLE", "Checkpoint"]

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


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
        self._files = weight_files(folder)
        self._found: dict[str, Found] = {}
        problems: list[str] = []
        for file in self._files:
            for name, found in header(file).items():
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
            with opened(file, str(device)) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    weights[name] = tensors.get_tensor(name).to(dtype)
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


def _misfits(name: str, found: Found, expected: Mapping[str, Tensor]) -> Iterator[str]:
    if name not in expected:
        yield f"unexpected in {found.file.name}: {name} {found.shape}"
        return
    shape = tuple(expected[name].shape)
    if found.shape != shape:
        yield f"shape in {found.file.name}: {name} is {found.shape}, not {shape}"
    if found.dtype not in PLAIN_DTYPES:
        yield f"dtype in {found.file.name}: {name} is {found.dtype}; quantised weights are not read, use the original"


def _listing(folder: Path, problems: list[str], is_tied: bool) -> str:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    could_be_tied = not is_tied and len(problems) == 1 and problems[0].startswith(f"missing: {HEAD} ")
    hint = "\nIf the head is the token embedding, config.json lacks tie_word_embeddings: true." if could_be_tied else ""
    return (
        f"{folder}: {len(problems)} tensors do not fit config.json; use the weights and the config.json of one model\n"
        f"{lines}{hint}"
    )
