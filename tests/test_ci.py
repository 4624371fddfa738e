"""What CI's scripts say: how the newest releases did, in one line that fails nothing; and that the workflow can run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / ".ci").iterdir())
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
SUITES = {
    "def test_a(): pass\ndef test_b(): pass\n": "all 2 default tests hold",
    "def test_a(): assert 0\ndef test_b(): pass\n": "1 default tests do not hold: test_it.py::test_a",
    "import no_such_module\n": "1 default tests do not hold: test_it.py",
    "import os\ndef test_a(): os._exit(3)\n": "1 default tests do not hold: test_it.py::test_a",
    "x = 1\n": "the default tests do not start or end: no tests ran",
    "import time\ndef test_a(): time.sleep(600)\n": "the default tests are not done after 0 minutes",
}


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("newest", str(ROOT / ".ci" / "newest"))
    spec = importlib.util.spec_from_loader("newest", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "suite",
    [*list(SUITES)[:-1], pytest.param(list(SUITES)[-1], marks=pytest.mark.slow)],
    ids=["pass", "fail", "no import", "die", "no tests", "hang"],
)
def test_how_a_suite_ends_is_one_sentence(newest: ModuleType, suite: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(suite)
    newest.ROOT = tmp_path
    newest.LIMIT_S = 8 if "sleep" in suite else 60
    assert newest.run_tests(sys.executable).startswith(SUITES[suite])


def test_releases_are_compared_as_they_are_pinned(newest: ModuleType, tmp_path: Path) -> None:
    torch = "file:///wheels/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert newest.release_of(f"torch @ {torch}") == "torch==2.13.0"
    assert newest.release_of("torch==2.13.0+cpu") == "torch==2.13.0"
    assert newest.release_of("huggingface_hub==2.4.0") == "huggingface-hub==2.4.0"
    newest.ROOT = tmp_path
    (tmp_path / "constraints.txt").write_text("pytest==1.0\n")
    found = newest.newer_releases(sys.executable)
    assert f"pytest=={pytest.__version__}" in found
    assert not [release for release in found if release.startswith(("pip==", "ray-job=="))]


def test_scripts_are_whole_and_can_be_run() -> None:
    assert [file.name for file in SCRIPTS] == ["constraints", "lint", "newest", "run", "vllm", "wheel"]
    for file in SCRIPTS:
        assert os.access(file, os.X_OK), file
        shell = "bash" in file.read_text().splitlines()[0]
        check = (
            ["bash", "-n", file]
            if shell
            else [sys.executable, "-c", f"compile(open({str(file)!r}).read(), '', 'exec')"]
        )
        subprocess.run(check, check=True)


def test_the_workflow_runs_what_is_there() -> None:
    jobs = WORKFLOW["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = re.findall(r"\.ci/\w+", " ".join(lines))
    assert sorted(scripts) == [".ci/lint", ".ci/newest", ".ci/wheel"]
    readme = (ROOT / "README.md").read_text()
    assert [line for line in lines if "-m pytest" in line and line in readme.splitlines()], "the README's own command"
    needs = {name: job.get("needs") for name, job in jobs.items()}
    assert needs == {"lint": None, "test": "lint", "nightly": "lint"}
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == ["3.11", "3.12", "3.13"]
