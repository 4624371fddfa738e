"""Which warnings fail a test: those raised in this package and for what it calls, not other packages' own."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUTCOMES = {
    "test_we_call_what_a_library_deprecates": "failed",
    "test_a_library_calls_what_it_deprecates_itself": "passed",
    "test_we_leave_a_file_open": "failed",
    "test_a_thread_of_ours_dies": "failed",
}
SUITE = """
import os, threading, warnings

def run_as(module, code, **names):
    names |= {"__name__": module, "os": os, "threading": threading, "warnings": warnings}
    exec(compile(code, module + ".py", "exec"), names)
    return names

library = run_as("library", "def old(): warnings.warn('use new', DeprecationWarning, stacklevel=2)\\ndef new(): old()")

def test_we_call_what_a_library_deprecates():
    run_as("ray_job.models.loading", "old()", old=library["old"])

def test_a_library_calls_what_it_deprecates_itself():
    run_as("ray_job.models.loading", "new()", new=library["new"])

def test_we_leave_a_file_open():
    run_as("ray_job.storage.places", "def leak():\\n    file = open(os.devnull)\\n    del file\\nleak()")

def test_a_thread_of_ours_dies():
    run_as("ray_job.engine.loop", "thread = threading.Thread(target=lambda: 1 / 0)\\nthread.start()\\nthread.join()")
"""
CATEGORIES = [DeprecationWarning, FutureWarning, ResourceWarning, RuntimeWarning, UserWarning]


@pytest.mark.parametrize("module", ["ray_job", "ray_job.job", "ray_job.models.phi3_vision.model", "tests.test_docs"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="goes away"):
        warnings.warn_explicit("goes away", category, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["transformers.models.phi3", "ray_jobs", "ray.data", "my.ray_job", "testserver"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_warning_of_another_package_is_shown(module: str, category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as shown:  # with the filters as they are
        warnings.warn_explicit("goes away", category, "file.py", 1, module=module)
    assert [str(each.message) for each in shown] == ["goes away"]


def test_what_fails_a_real_run(tmp_path: Path) -> None:
    """The project's own settings over a suite that warns, leaks and lets a thread die."""
    (tmp_path / "test_warns.py").write_text(SUITE)
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-rA", "-p", "no:cacheprovider"]
    ran = subprocess.run([sys.executable, "-m", "pytest", *options, tmp_path], capture_output=True, text=True)
    found = {name: word.lower() for word, name in re.findall(r"^(PASSED|FAILED) \S*::(\w+)", ran.stdout, re.MULTILINE)}
    assert found == OUTCOMES, ran.stdout + ran.stderr
