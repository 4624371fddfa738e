"""A library model's config.json, checked before the library reads it: which model it is, and that it names no code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_job.errors import ModelError
from ray_job.models.json_file import read_json_object

FILE = "config.json"
_OLDEST_RELEASE = (5, 23)  # of transformers; vLLM's environment has an older one, where only its processors are used
_OWN_WEIGHTS = "transformers_weights"  # names another file, which may be a pickle or lie elsewhere


def model_type(folder: Path) -> str:
    """What config.json calls the kind of model.

    Raises:
        ModelError: the file is broken, or does not say.
    """
    found = read_json_object(folder / FILE).get("model_type")
    if isinstance(found, str) and found:
        return found
    said = "no model_type" if found is None else f"{found!r:.80} as model_type"
    raise ModelError(f"{folder / FILE} gives {said}; give the folder of a whole model, as its authors published it")


def image_token_id(config: Any) -> int | None:
    """What a model's prompt has in the places of a picture's features; None where its configuration does not say."""
    stated = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((value for value in stated if isinstance(value, int)), None)


def rope_types(text: Any) -> set[str]:
    """How the rotary factors of a decoder's layers are made, by its configuration."""
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer = [each for each in parameters.values() if isinstance(each, Mapping)]
    return {str(each.get("rope_type", "default")) for each in by_layer or [parameters]}


def check_release(version: str) -> None:
    """Raises ModelError unless this release of transformers is one whose models have been run here, such as 5.24.0."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_RELEASE:
        raise ModelError(
            f"transformers {version} is too old for its models to be run here; install transformers>="
            f"{'.'.join(map(str, _OLDEST_RELEASE))}, or set batching.engine: vllm"
        )


def read_config(folder: Path) -> Any:
    """The library's configuration of a vision-language model.

    Raises:
        ModelError: the file is broken, the library does not know the type, or knows it as something else, or its
            release is too old.
    """
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    path, kind = folder / FILE, model_type(folder)
    check_release(transformers.__version__)
    content = read_json_object(path)
    if kind not in CONFIG_MAPPING:
        code = ". Python code that comes with a model is never run" if "auto_map" in content else ""
        raise ModelError(
            f"{path}: transformers {transformers.__version__} does not know the model_type {kind!r}; install a release "
            f"that does, or use another model{code}"
        )
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelError(
            f"{path}: {kind!r} is no vision-language model to transformers {transformers.__version__} (none of its "
            "AutoModelForImageTextToText); use a model that answers questions about pictures"
        )
    if content.get(_OWN_WEIGHTS):
        raise ModelError(
            f"{path}: {_OWN_WEIGHTS} names weights of its own; remove it, and give the files their usual names"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of many classes, whatever a field's value makes the library stumble over
        raise ModelError(
            f"{path}: transformers {transformers.__version__} cannot use it ({type(error).__name__}: "
            f"{' '.join(str(error).split()):.300}); download the model's files again"
        ) from error
