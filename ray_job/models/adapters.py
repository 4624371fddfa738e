"""A fine-tune that `peft` saved as an adapter: its folder, what is in it, and merging it into the model's weights.

Only merging imports `peft`, and torch with it. A merged model computes as the base with the adapter on top of it, and
costs what the base costs. Each layer is merged in float32 and cast to its weight's dtype once: a magnitude (DoRA) that
is multiplied in 16 bits would round every weight a second time.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray_job.errors import ModelError, first_line, listed
from ray_job.models.hub import snapshot_folder
from ray_job.models.json_file import read_json_object
from ray_job.models.store import download_model
from ray_job.redaction.logs import logger_of
from ray_job.spec import ModelSpec
from ray_job.storage.places import parse_uri

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

CONFIG, WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_FIELD = "model.adapter"
_INSTALL = "pip install 'ray_job[peft]'"
# Those whose merged weights the tests hold against peft's own unmerged answers.
_MERGEABLE = ("LORA", "LOHA", "LOKR", "IA3")
_MERGE_YOURSELF = (
    "put it into the weights with peft's merge_and_unload() where it can, save the whole model, and give that as "
    "model.path"
)
_NAME = "default"  # peft's name of a model's only adapter
_MAX_NAMED = 20
_LOG = logger_of(__name__)


def adapter_folder(model: ModelSpec) -> Path | None:
    """Where the adapter's files are on this machine, downloaded once for all its processes; None without an adapter.

    Raises:
        ModelError: there is no such folder, or the download fails.
    """
    if model.adapter is None:
        return None
    if parse_uri(model.adapter) is not None:
        return download_model(model.adapter, with_weights=True, field=_FIELD)
    return snapshot_folder(model.adapter, model.adapter_revision, field=_FIELD)


def check_adapter(model: ModelSpec) -> None:
    """Looks at the adapter's files, without `peft` and before any weights are read.

    An adapter of a base of another name is only warned of: the same model has many names.

    Raises:
        ModelError: there is no such adapter, or it is of a kind that cannot be merged.
    """
    folder = adapter_folder(model)
    if folder is None:
        return
    if not (folder / CONFIG).exists() and (folder / "config.json").exists():
        raise ModelError(f"{_FIELD}: {folder} holds a whole model, not an adapter; give it as model.path")
    config = read_json_object(folder / CONFIG, "give the folder that peft's save_pretrained wrote")
    _check_weights(folder)
    _check_kind(folder, config)
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and base and _last_name(base) != _last_name(model.path):
        _LOG.warning(
            "%s: %s was trained on %s, and model.path is %s; if these are not the same weights, its answers mean "
            "nothing",
            _FIELD,
            model.adapter,
            base,
            model.path,
        )


def merge_adapter(model: Model, folder: Path) -> Model:
    """The model with the adapter in its weights, which change in place; dtypes, devices and names stay the same.

    Where weights are tied and the adapter changes one of them, it has its own afterwards, as in training.

    Args:
        model: the base, whose modules have the names that it was trained under.
        folder: of the adapter, as `adapter_folder` gives it.

    Raises:
        ModelError: `peft` is not installed, or the adapter is broken or does not fit: names and shapes are listed.
    """
    from ray_job.engine.memory import is_out_of_memory

    try:
        import peft
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(f"{_FIELD} needs the package peft ({first_line(error)}): {_INSTALL}") from None

    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{_FIELD}: {folder / WEIGHTS} is not a complete safetensors file ({first_line(error)}); download the "
            "adapter's files again"
        ) from None
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        tuned = peft.PeftModel(model, config, _NAME)
        loaded = peft.set_peft_model_state_dict(tuned, tensors, _NAME)
        _check_names(folder, loaded)
        _merge_layers(tuned)
        merged: Model = tuned.base_model.unload()
    # What peft raises is of no class of its own: an adapter is the user's, and one that it cannot take is no fault.
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(_misfit(folder, _lines(error))) from error
    return merged.eval()


def _check_weights(folder: Path) -> None:
    if (folder / WEIGHTS).exists():
        return
    if (folder / _PICKLE).exists():
        raise ModelError(
            f"{_FIELD}: {folder} holds weights only as {_PICKLE}, a pickle, which can execute code when it is read; "
            f"load it with peft and save it again: save_pretrained writes {WEIGHTS}"
        )
    raise ModelError(f"{_FIELD}: {folder} holds no {WEIGHTS}; give the folder that peft's save_pretrained wrote")


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind not in _MERGEABLE:
        allowed = ", ".join(_MERGEABLE)
        raise ModelError(
            f"{folder / CONFIG}: peft_type is {kind!r}; allowed: {allowed}, whose changes go into the weights. "
            f"For another one, {_MERGE_YOURSELF}"
        )
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{folder / CONFIG}: alora_invocation_tokens is set: such an adapter works from a certain token on, and "
            "cannot be merged; train it without"
        )


def _check_names(folder: Path, loaded: Any) -> None:
    """Of what peft's loading returns: it ignores what it does not find."""
    missing = [name for name in loaded.missing_keys if _NAME in name.split(".")]
    problems = [f"not in the model: {name}" for name in loaded.unexpected_keys]
    problems += [f"not in {WEIGHTS}: {name}" for name in missing]
    if problems:
        raise ModelError(_misfit(folder, problems))


def _lines(error: BaseException) -> list[str]:
    """What an error says, a problem a line; torch lists names under a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("Error(s) in loading")] or [type(error).__name__]


def _misfit(folder: Path, problems: Sequence[str]) -> str:
    return (
        f"{_FIELD}: {folder} cannot be merged into this model; use the base it was trained on, at the same revision. "
        f"If tokens were added for it, {_MERGE_YOURSELF}\n{listed(problems, _MAX_NAMED)}"
    )


def _merge_layers(tuned: nn.Module) -> None:
    """One by one, each in float32, so that only one layer is held twice."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in tuned.modules() if isinstance(module, BaseTunerLayer)]
    _untie(tuned, [layer.get_base_layer() for layer in layers])
    for layer in layers:
        base = layer.get_base_layer()
        dtypes = [parameter.dtype for parameter in base.parameters()]
        base.float()
        layer.merge(safe_merge=True)
        for parameter, dtype in zip(base.parameters(), dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)


def _untie(tuned: nn.Module, bases: Sequence[nn.Module]) -> None:
    """Gives a layer that the adapter changes its own weight where another module has the same one."""
    from torch import nn

    owners = Counter(id(weight) for module in tuned.modules() for weight in module.parameters(recurse=False))
    for base in bases:
        for name, weight in list(base.named_parameters(recurse=False)):
            if owners[id(weight)] > 1:
                owners[id(weight)] -= 1
                setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=False))


def _last_name(path: str) -> str:
    """What a hub id and a folder of the same model have in common."""
    return posixpath.basename(path.rstrip("/")).lower()
