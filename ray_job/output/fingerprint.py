"""Everything that can change an answer, field by field. An output is continued only if all fields are the same.

Left out are how fast and where rows are answered (batching, workers, attention), where files are, and the limits. A
limit decides whether a row is answered, never what the answer is: it may be raised and failed rows retried. Where vLLM
answers, its version and options are part of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ray_job.errors import ModelError
from ray_job.inputs.source import Source
from ray_job.models.adapters import CONFIG, WEIGHTS, adapter_folder
from ray_job.models.loading import model_folder
from ray_job.models.vllm.installation import vllm_version
from ray_job.rows import output_schema
from ray_job.spec import JobSpec

ENGINE_VERSION = 5  # raise it with every change of the code that changes answers

DTYPE = "model.dtype"
AUTO_DTYPES = {"CPU": "float32", "GPU": "bfloat16"}  # what workers settle `auto` to
_AUTO = "auto"
_SUFFIXES = (".json", ".jinja", ".safetensors")  # of a model's files that are read
_WHOLE_BYTES = 256 * 2**20
_SAMPLE_BYTES = 4096
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, by its format


def fingerprint_fields(spec: JobSpec, source: Source) -> dict[str, Any]:
    """The fields by dotted name, values as JSON has them.

    Args:
        spec: with a settled prompt.
        source: its input, which settles columns.

    Raises:
        ModelError: the model's files cannot be read, or the engine is not installed.
    """
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions, spec.generation.structured_outputs)
    adapter = adapter_folder(spec.model)
    adapter_digests = {} if adapter is None else file_digests(adapter, only=(CONFIG, WEIGHTS))
    return {
        "engine_version": ENGINE_VERSION,
        **({"batching.vllm_version": vllm_version()} if spec.batching.engine == "vllm" else {}),
        **dict(_flat(spec.answer_fields())),
        "input.image_columns": list(source.image_columns),
        "generation.overrides_column": source.overrides_column,
        **{f"model.files.{name}": digest for name, digest in file_digests(model_folder(spec.model)).items()},
        **{f"model.adapter.{name}": digest for name, digest in adapter_digests.items()},
        **{f"output.columns.{field.name}": str(field.type) for field in schema},
    }


def digest(fields: Mapping[str, Any]) -> str:
    """Hash of the fields: 16 hex digits."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def settled(fields: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with the dtype that earlier runs of the output settled if it is `auto` here."""
    is_open = fields.get(DTYPE) == _AUTO
    return {**fields, DTYPE: earlier.get(DTYPE, _AUTO)} if is_open else dict(fields)


def possible_digests(fields: Mapping[str, Any]) -> dict[str, str]:
    """The digests a run may have, by the device that settles its dtype; with a dtype that is set, one under ""."""
    if fields.get(DTYPE) != _AUTO:
        return {"": digest(fields)}
    return {device: digest({**fields, DTYPE: dtype}) for device, dtype in AUTO_DTYPES.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each field that differs. A dtype of `auto` agrees with any, since the workers are yet to settle it."""
    lines = []
    for name in dict.fromkeys([*old, *new]):
        before, now = (json.dumps(fields[name]) if name in fields else "absent" for fields in (old, new))
        if before != now and not (name == DTYPE and _AUTO in (old.get(name), new.get(name))):
            lines.append(f"{name}: was {before}, is {now}")
    return lines


def file_digests(folder: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """Hashes of a model's JSON, chat template and safetensors files, or of those that are named, by name.

    They have 16 hex digits each.

    A file up to 256 MiB is hashed whole. Of a larger one, so that 8 GB do not wait for a disk, the size, the header
    (every tensor's name, type and place) and each tensor's first and last 4 KiB: an edit in the middle of one tensor
    that leaves its ends and all others as they were is not seen; training, merging or quantising is.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
        return {path.name: _file_digest(path) for path in files if only is None or path.name in only}
    except OSError as error:
        raise ModelError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= _WHOLE_BYTES or path.suffix != ".safetensors":
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        return _sampled_digest(stream, size)


def _sampled_digest(stream: BinaryIO, size: int) -> str:
    (header_len,) = struct.unpack("<Q", stream.read(8))
    header = stream.read(min(header_len, _MAX_HEADER_BYTES))
    sha = hashlib.sha256(struct.pack("<Q", size) + header)
    for start, stop in _tensor_places(header, size):
        for offset in (start, max(start, stop - _SAMPLE_BYTES)):
            stream.seek(8 + header_len + offset)
            sha.update(stream.read(min(_SAMPLE_BYTES, stop - start)))
    return sha.hexdigest()[:16]


def _tensor_places(header: bytes, size: int) -> list[tuple[int, int]]:
    """Where tensors begin and end; none for a header that is not one of safetensors: loading it says what is wrong."""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        places = [tensors[name]["data_offsets"] for name in sorted(tensors)]
        whole = [(int(start), int(stop)) for start, stop in places]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OverflowError):
        return []
    return whole if all(0 <= start <= stop <= size for start, stop in whole) else []


def _flat(sections: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sections.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
