"""`_manifest.json`: what an output is, which runs made it, and the state of the latest run."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from ray_job.errors import Interrupted, SpecError
from ray_job.models.vllm.installation import DISTRIBUTIONS
from ray_job.output.fingerprint import digest
from ray_job.output.totals import Totals
from ray_job.redaction.text import public_uri, without_secrets
from ray_job.spec import JobSpec
from ray_job.storage.options import public_options
from ray_job.storage.places import Location
from ray_job.storage.whole_files import read_text, write_json

MANIFEST, REPORT, SUCCESS = "_manifest.json", "_report.json", "_SUCCESS"
REPORT_PAGE = "_report.html"
_PACKAGES = ("ray_job", "ray", "torch", "transformers", "pyarrow", "pillow", "tokenizers", "peft", "torchao")


class State(StrEnum):
    """The state of a run."""

    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"  # all rows are committed; they are being counted, or `_SUCCESS` is still to be written
    COMPLETED = "completed"  # counted, and `_SUCCESS` is there
    FAILED = "failed"
    CANCELLED = "cancelled"

    @classmethod
    def of_error(cls, error: BaseException) -> State:
        """The state of a run that ended with this error."""
        return cls.CANCELLED if isinstance(error, Interrupted | KeyboardInterrupt) else cls.FAILED


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One of the inputs of an output; the latest comes last."""

    identity: str  # `inputs.identity.input_identity`
    first_position: int  # its rows are numbered from here
    rows: int
    known_rows: int = 0  # of these, how many an earlier input had, by id


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Ids that several rows share. Each of these rows has its own answer; this is for information."""

    ids: int = 0  # different ids that come more than once
    rows: int = 0  # rows beyond the first of each
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `_manifest.json`."""

    state: State
    run: int  # how many runs there were, this one included
    fields: dict[str, Any]  # of the fingerprint
    inputs: tuple[InputRecord, ...]
    started_s: float
    elapsed_s: float
    input_rows: int
    totals: Totals = field(default_factory=Totals)  # of all runs
    already_done: int = 0  # rows that this run found done
    duplicates: Duplicates = field(default_factory=Duplicates)
    skipped: dict[str, Any] = field(default_factory=dict)  # files of the input that held no rows: `Skipped.to_dict`
    error: str | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    placement: dict[str, Any] = field(default_factory=dict)  # what actors compute with (`Workers.record`)

    @property
    def fingerprint(self) -> str:
        """Hash of all that can change an answer."""
        return digest(self.fields)

    def write(self, root: Location) -> None:
        """Replaces the file."""
        content = {"fingerprint": self.fingerprint, **asdict(self)}
        content["error"] = None if self.error is None else without_secrets(self.error)
        write_json(root, MANIFEST, content)

    @classmethod
    def of_output(cls, root: Location) -> Self:
        """The manifest of a folder that must have one.

        Raises:
            SpecError: it has none, or the file is no manifest of this version.
        """
        manifest = cls.read(root)
        if manifest is None:
            raise SpecError([f"{root}: no job's output here, since it has no {MANIFEST}. Check the path"])
        return manifest

    @classmethod
    def read(cls, root: Location) -> Self | None:
        """The manifest there is, if any.

        One that says completed without `_SUCCESS` beside it is of a run that died between the two: it is read as
        finalizing.

        Raises:
            SpecError: the file is no manifest of this version.
        """
        text = read_text(root, MANIFEST)
        if text is None:
            return None
        try:
            fields = json.loads(text)
            fields.pop("fingerprint")
            fields["state"] = state = State(fields["state"])
            fields["inputs"] = tuple(InputRecord(**record) for record in fields["inputs"])
            fields["totals"] = Totals(**fields["totals"])
            duplicates = fields["duplicates"]
            fields["duplicates"] = Duplicates(**{**duplicates, "examples": tuple(duplicates["examples"])})
            manifest = cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(
                [
                    f"output.path: {root}/{MANIFEST} is damaged, or of another version ({error}); the parts beside it "
                    "may be whole, but nothing says which job they belong to. Move the folder away, or set output.path"
                ]
            ) from None
        if state == State.COMPLETED and read_text(root, SUCCESS) is None:
            return replace(manifest, state=State.FINALIZING)
        return manifest


def public_spec(spec: JobSpec) -> dict[str, Any]:
    """The spec as a manifest may show it: without credentials in its URIs and options."""
    dump: dict[str, Any] = spec.model_dump(mode="json")
    dump["input"]["path"] = [public_uri(path) for path in dump["input"]["path"]]
    for section, options in (("input", spec.input.storage_options), ("output", spec.output.storage_options)):
        dump[section]["storage_options"] = public_options(options)
    for section, key in (("output", "path"), ("input", "image_root"), ("model", "path"), ("model", "adapter")):
        if dump[section][key] is not None:
            dump[section][key] = public_uri(dump[section][key])
    return dump


def placement_text(placement: Mapping[str, Any]) -> str:
    """A manifest's `placement` in words."""
    threads = [str(num) for num in placement.get("threads_per_actor", [])]
    parts = [str(placement[name]) for name in ("device", "dtype") if name in placement]
    parts += [f"{placement[name]} weights" for name in ("quantization",) if name in placement]
    return ", ".join([*parts, *([f"{' or '.join(threads)} threads an actor"] if threads else [])])


def engine_text(placement: Mapping[str, Any]) -> str | None:
    """Which engine ran and why, in words; None where it is the one that runs if nothing speaks against it."""
    reason = placement.get("engine_reason")
    return None if reason is None else f"{placement.get('engine')}: {reason}"


def versions() -> dict[str, str | None]:
    """The versions of the packages that take part in an answer; vLLM's, where it is installed."""
    vllm = {name: found for name in DISTRIBUTIONS if (found := _version(name)) is not None}
    return {name: _version(name) for name in _PACKAGES} | vllm


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
