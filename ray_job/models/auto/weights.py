"""The weights of a library model from a folder: safetensors only, strict, their pages shared with other processes.

The library reads them, so that its own renamings and conversions of older checkpoints apply. It only logs what does not
fit; here that is an error with every name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ray_job.errors import ModelError, first_line, listed
from ray_job.models.auto.configuration import FILE, read_config
from ray_job.models.quantization import ORIGINAL, quantization_method
from ray_job.models.safetensors_files import ADVICE, PLAIN_DTYPES, Found, header, weight_files

_ADAPTER = "adapter_config.json"
_MAX_LISTED = 50
_LIBRARY = "transformers"


def load(folder: Path, *, dtype: torch.dtype, device: str | torch.device = "cpu", attention: str = "sdpa") -> Any:
    """The `AutoModelForImageTextToText` in `folder` in `dtype` on `device`, in evaluation mode.

    On a CPU, weights that are stored in `dtype` are pages of their files, which all processes of a machine share.

    Args:
        folder: of the model, with config.json and model.safetensors or its shards.
        dtype: of the weights, but for the few that the model's authors keep in float32.
        device: where they go.
        attention: `sdpa` or `eager`, of the library's own attention.

    Raises:
        ModelError: a file is absent or broken, the library does not know the model, or tensors do not fit: every
            missing, unexpected and wrongly shaped one is listed with its file, unless the model ties or declares it.
    """
    config = read_config(folder)
    _check_adapter(folder)
    found = _headers(folder)
    method = quantization_method(vars(config))
    if method is None:
        _check_dtypes(folder, found)
    else:
        _check_method(folder, method)
    model, report = _read(folder, config, dtype, attention)
    if problems := [*_problems(report, found, model)]:
        raise ModelError(_listing(folder, problems))
    return model.requires_grad_(False).eval().to(device)


def _read(folder: Path, config: Any, dtype: torch.dtype, attention: str) -> tuple[Any, Mapping[str, Any]]:
    """What the library reads, and what it says did not fit."""
    import transformers

    from ray_job.engine.memory import is_out_of_memory

    auto: Any = transformers.AutoModelForImageTextToText
    with _library_log() as log:
        try:
            model, report = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are listed with the others
                output_loading_info=True,
            )
        except Exception as error:  # of many classes; all but memory are of what the folder holds
            if is_out_of_memory(error):
                raise
            if "attention implementation" in str(error) or f"attn_implementation={attention!r}" in str(error):
                raise ModelError(f"model.attention: {first_line(error)}") from error
            method = quantization_method(vars(config))
            if method is not None:
                raise ModelError(
                    f"{folder}: the weights are quantised by {method}, and the library cannot read them here: "
                    f"{first_line(error)}; install what it names, use a device that it works on, or {ORIGINAL}"
                ) from error
            details = "".join(f"\n{line}" for line in log)
            raise ModelError(
                f"{folder}: the library cannot load it ({type(error).__name__}: {first_line(error)}); {ADVICE}{details}"
            ) from error
    return model, report


def _check_adapter(folder: Path) -> None:
    """Raises ModelError for a folder that the library would take for an adapter, whose base it then looks for."""
    if (folder / _ADAPTER).exists():
        raise ModelError(
            f"{folder} holds {_ADAPTER}: give the folder of the whole model as model.path, and this one as "
            "model.adapter"
        )


def _check_method(folder: Path, method: str) -> None:
    """Raises ModelError for weights that the library would take for plain ones, since it does not know better."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        raise ModelError(
            f"{folder / FILE}: quantization_config says that the weights are quantised by {method}, which the library "
            f"does not know; {ORIGINAL}"
        )


def _headers(folder: Path) -> dict[str, Found]:
    """By name in the files. Raises ModelError where a name is in two files."""
    found: dict[str, Found] = {}
    problems = []
    for file in weight_files(folder):
        tensors = header(file)
        problems += [
            f"in two files, {found[name].file.name} and {file.name}: {name}" for name in tensors.keys() & found
        ]
        found |= tensors
    if problems:
        raise ModelError(_listing(folder, problems))
    return found


def _check_dtypes(folder: Path, found: Mapping[str, Found]) -> None:
    problems = [
        f"dtype in {each.file.name}: {name} is {each.dtype}; without a quantization_config that means nothing"
        for name, each in found.items()
        if each.dtype not in PLAIN_DTYPES and not _is_table(name)
    ]
    if problems:
        raise ModelError(_listing(folder, problems))


def _is_table(name: str) -> bool:
    """Whether a tensor is of whole numbers by nature, as old checkpoints store them."""
    return name.endswith(("position_ids", "relative_position_index", "num_batches_tracked"))


def _problems(report: Mapping[str, Any], found: Mapping[str, Found], model: Any) -> Iterator[str]:
    for name in sorted(report["missing_keys"]):
        yield f"missing: {name} {tuple(model.get_parameter_or_buffer(name).shape)}"
    for name in sorted(report["unexpected_keys"]):
        shape = f" {found[name].shape}" if name in found else ""
        yield f"unexpected in {_file_of(name, found)}: {name}{shape}"
    for name, stored, expected in sorted(report["mismatched_keys"]):
        yield f"shape in {_file_of(name, found)}: {name} is {tuple(stored)}, not {tuple(expected)}"


def _file_of(name: str, found: Mapping[str, Found]) -> str:
    """The file that a tensor is in; the library may have renamed it since, but rarely its end."""
    if name in found:
        return found[name].file.name
    ends = [each.file.name for stored, each in found.items() if stored.endswith(_end(name))]
    files = sorted(set(ends or (each.file.name for each in found.values())))
    return files[0] if len(files) == 1 else f"one of {len(files)} files"


def _end(name: str) -> str:
    """The last parts of a name, from its layer's number on."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return "." + ".".join(parts[numbers[-1] :] if numbers else parts[-2:])


def _listing(folder: Path, problems: list[str]) -> str:
    head = f"{folder}: {len(problems)} tensors do not fit {FILE}; use the weights and the {FILE} of one model"
    return f"{head}\n{listed(problems, _MAX_LISTED)}"


@contextmanager
def _library_log() -> Iterator[Iterable[str]]:
    """Keeps the library's warnings and progress bars to itself while it loads."""
    import transformers

    library: Any = transformers.utils.logging
    kept = _Kept()
    logger = logging.getLogger(_LIBRARY)
    handlers, propagates = logger.handlers, logger.propagate
    has_bars = library.is_progress_bar_enabled()
    logger.handlers, logger.propagate = [kept], False
    library.disable_progress_bar()
    try:
        yield kept.lines
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        if has_bars:
            library.enable_progress_bar()


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
