"""constraints.txt pins everything that an install of this package brings, within the ranges of pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = dict(line.split("==") for line in LINES)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN_ENVIRONMENT = {"vllm"}  # it pins torch and transformers itself
PINNED = [texts for name, texts in EXTRAS.items() if name not in OWN_ENVIRONMENT]
RANGES = [Requirement(text) for texts in [PROJECT["dependencies"], *PINNED] for text in texts]
DIRECT = [need for need in RANGES if need.name != "ray_job"]
# Named by the build of torch that a machine takes.
CUDA = re.compile("nvidia-|cuda-|triton$")


def test_each_line_is_a_release_and_nothing_of_a_machine() -> None:
    assert len(LINES) > 100
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert list(PINS) == sorted(PINS)
    assert [name for name in PINS if name != canonicalize_name(name) or CUDA.match(name)] == []


@pytest.mark.parametrize("need", DIRECT, ids=lambda need: need.name)
def test_a_range_admits_its_pin(need: Requirement) -> None:
    assert PINS[canonicalize_name(need.name)] in need.specifier
    assert [each.operator for each in need.specifier if each.operator in ("==", "===", "~=")] == []


def test_the_build_has_the_pinned_setuptools() -> None:
    assert PYPROJECT["build-system"]["requires"] == [f"setuptools=={PINS['setuptools']}"]


def needs_of(requirement: Requirement) -> Iterator[Requirement]:
    """What an installed package needs here, where it has its pinned version: another one may need other things."""
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        return
    if Version(found.version).public == PINS.get(canonicalize_name(requirement.name)):
        for need in map(Requirement, found.requires or ()):
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                yield need


def test_what_is_needed_by_what_is_needed_is_pinned_too() -> None:
    open_needs, seen = list(DIRECT), set()
    while open_needs:
        need = open_needs.pop()
        if str(need) not in seen and not CUDA.match(need.name):
            seen.add(str(need))
            open_needs += needs_of(need)
    names = {canonicalize_name(Requirement(text).name) for text in seen}
    assert names - set(PINS) == set()
    if Version(distribution("torch").version).public == PINS["torch"]:
        assert "mpmath" in names, "which only sympy needs, which only torch needs"
