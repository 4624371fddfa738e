"""The README's lines that read an output, as they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .quiet_job import QuietJob
from .test_empty_parts import answered, failed

pytestmark = pytest.mark.data
README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCK = re.search(r"```python\n(import datasets, .*?)```", README, re.DOTALL)
assert BLOCK is not None
IMPORTS, *LINES = [line for line in BLOCK[1].splitlines() if line and not line.startswith("#")]
IDS = [re.sub(r"\W+", "-", line)[:50] for line in LINES]


def some_failed(row: int) -> dict[str, Any]:
    return failed(row) if row % 3 == 0 else {}


def num_rows(line: str) -> int:
    names: dict[str, Any] = {}
    for name in IMPORTS.removeprefix("import ").split(", "):
        pytest.importorskip(name)
    exec(IMPORTS, names)
    found = eval(line, names)
    return len(found)


@pytest.mark.parametrize("line", LINES, ids=IDS)
@pytest.mark.parametrize("change", [answered, some_failed, failed])
def test_a_line_of_the_readme_reads_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], dict[str, Any]], line: str
) -> None:
    job = QuietJob(tmp_path, {"output": {"format": "openai_batch"}})
    job.write_input(6)
    job.run(change=change)
    job.out.rename(tmp_path / "answers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    num_failed = sum("status" in change(row) for row in range(6))
    expected = 6 if "answers/data" not in line else 6 - num_failed
    if "datasets" in line and expected == 0:
        with pytest.raises(ValueError, match="corresponds to no data"):  # its own rule, whatever the files
            num_rows(line.replace(")", f", cache_dir={str(tmp_path / 'hf')!r})"))
        return
    if "datasets" in line:
        line = line.replace(")", f", cache_dir={str(tmp_path / 'hf')!r})")
    assert num_rows(line) == expected


def test_every_reader_is_there() -> None:
    readers = {line.split(".")[0] for line in LINES}
    assert readers == {"pandas", "polars", "duckdb", "datasets", "pyarrow"}
    assert len(LINES) == 2 * len(readers), "of the answers, and of all rows"
