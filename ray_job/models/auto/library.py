"""The library's own processor of a checkpoint, for pictures alone: no torchvision, no code of the folder's.

A processor of the library that knows videos wants a part for them that needs torchvision; `_NoVideos` takes its place
and is never called. Pictures go through the library's classes on PIL.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ray_job.errors import ModelError, first_line
from ray_job.models.json_file import read_json_object

_NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_ADVICE = (
    "What runs: Phi-3-Vision, and models of the library that put a picture's features in the places of picture tokens, "
    "such as Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA, LLaVA-NeXT, LLaVA-OneVision, SmolVLM, Idefics3, InternVL, Gemma 3, "
    "PaliGemma, Mistral 3 and GLM-4V"
)


class _NoVideos:
    merge_size, num_frames, fps, temporal_patch_size, patch_size = 2, 8, 1, 2, 14
    model_input_names: tuple[str, ...] = ()


def load_processor(folder: Path, options: Mapping[str, Any]) -> Any:
    """The processor that a checkpoint's files describe.

    Args:
        folder: the checkpoint's.
        options: of the image processor, instead of the files'.

    Raises:
        ModelError: the model is none that shows pictures to a decoder, or a file is missing or wrong.
    """
    cls = _processor_class(folder)
    try:
        processor = _pictures_only(cls, options).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever its files make the library raise
        raise ModelError(
            f"{folder}: the library's {cls.__name__} cannot be made of these files: {type(error).__name__}: "
            f"{first_line(error)}; download the model's files again, tokenizer.json and "
            "preprocessor_config.json or processor_config.json among them"
        ) from error
    if getattr(processor, "image_token", None) is None:
        raise ModelError(f"{folder}: the library's {cls.__name__} has no picture token. {_ADVICE}")
    return processor


def _processor_class(folder: Path) -> type[Any]:
    names: dict[str, str] = _module("transformers.models.auto.processing_auto").PROCESSOR_MAPPING_NAMES
    model_type = str(read_json_object(folder / "config.json").get("model_type"))
    contents = [read_json_object(folder / name) for name in _NAMING_FILES if (folder / name).exists()]
    named = [content.get("processor_class") for content in contents]
    name = next((each for each in named if each in names.values()), names.get(model_type))
    found = _class(name, [each for each, own in names.items() if own == name]) if name else None
    if found is None:
        raise ModelError(f"{folder}: model_type is {model_type!r}, for which the library has no processor. {_ADVICE}")
    general = _module("transformers.processing_utils").ProcessorMixin.replace_image_token
    if getattr(found, "replace_image_token", general) is general or "image_processor" not in found.get_attributes():
        raise ModelError(f"{folder}: model_type is {model_type!r}, and {name} places no pictures in texts. {_ADVICE}")
    return cast(type[Any], found)


def _class(name: str, model_types: list[str]) -> Any:
    """A processor's class, from the module of the first of the models that share it; None where none has it."""
    module_of = _module("transformers.models.auto.configuration_auto").model_type_to_module_name
    for module in dict.fromkeys(map(module_of, model_types)):
        if module == "pixtral":
            _let_pixtral_be_imported()
        try:
            found = _module(f"transformers.models.{module}.processing_{module}")
        except ImportError:  # that model has another's
            continue
        if hasattr(found, "num2words"):
            found.num2words = found.num2words or str  # a package that spells numbers of video frames
        if hasattr(found, name):
            return getattr(found, name)
    return None


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _let_pixtral_be_imported() -> None:
    """Its processor's module takes a function from the image processor that needs torchvision; PIL's has the same."""
    package = "transformers.models.pixtral"
    pil = importlib.import_module(f"{package}.image_processing_pil_pixtral")
    name = f"{package}.image_processing_pixtral"
    if name in sys.modules:
        return
    sys.modules[name] = pil
    try:
        importlib.import_module(f"{package}.processing_pixtral")
    finally:
        del sys.modules[name]


def _pictures_only(cls: Any, options: Mapping[str, Any]) -> type[Any]:
    """The class, made of a folder's tokenizer and image processor alone."""
    transformers: Any = _module("transformers")

    def image_processor(folder: Path) -> Any:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True, **options
        )

    def tokenizer(folder: Path) -> Any:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def parts(made: Any, folder: Path, /, processor_dict: Any = None, **_: Any) -> list[Any]:
        makers: dict[str, Callable[[Path], Any]]
        makers = {"tokenizer": tokenizer, "image_processor": image_processor, "video_processor": lambda _: _NoVideos()}
        return [makers[name](folder) for name in made.get_attributes()]

    def check(self: Any, name: str, argument: Any) -> Any:
        return type(argument) if "video" in name else cls.check_argument_for_proper_class(self, name, argument)

    members = {
        "get_attributes": classmethod(lambda _: cls.get_attributes()),
        "check_argument_for_proper_class": check,
        "_get_arguments_from_pretrained": classmethod(parts),
        "__repr__": object.__repr__,  # the library's writes all parts as JSON, for its log
        "__module__": cls.__module__,
    }
    return type(cls.__name__, (cls,), members)
