"""The command line as a user meets it: help at once, three mistakes in one go, plan, schema."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ray_job.cli import main

PACKAGE = Path(__file__).parent.parent / "ray_job"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ray_job", *arguments], capture_output=True, text=True, check=False)


def test_help_loads_nothing_heavy() -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "ray_job", "--help"]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "exit codes" in finished.stdout
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in finished.stderr.splitlines() if "|" in line}
    assert {"ray_job", "argparse", "pydantic"} <= loaded
    assert loaded & {"torch", "ray", "transformers", "tokenizers", "numpy", "pyarrow", "PIL", "fsspec"} == set()


@pytest.mark.parametrize("module", ["ray_job.cli", "ray_job.plan", "ray_job.stages.prepare", "ray_job.models.loading"])
def test_what_must_start_fast_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'transformers'}} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def imports_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("folder", ["engine", "models", "stages", "prompts", "storage", "rows.py"])
def test_engine_model_and_actor_do_not_know_ray(folder: str) -> None:
    path = PACKAGE / folder
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    for file in files:
        assert not {name for name in imports_of(file) if name == "ray" or name.startswith("ray.")}, file


def test_validate_shows_every_mistake_at_once(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "input: {path: in, fromat: parquet}\noutput: {path: out, mode: overwrit}\ngeneration: {max_new_tokens: none}\n"
    )
    finished = command("validate", str(tmp_path / "job.yaml"))
    assert finished.returncode == 2
    assert "3 problems" in finished.stderr
    assert "input.fromat: got 'parquet'; unknown key; did you mean 'format'?" in finished.stderr
    assert "output.mode: got 'overwrit'; allowed: error, " in finished.stderr
    assert "generation.max_new_tokens: got 'none'; allowed: a valid integer" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_validate_says_that_no_pictures_are_shown(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("photo,q\na.jpg,x\n")
    text = f"input: {{path: {tmp_path}/rows.csv}}\nmodel: {{path: 'builtin:noop'}}\noutput: {{path: {tmp_path}/out}}\n"
    (tmp_path / "job.yaml").write_text(text + "prompt: {template: x}\n")
    hint = "shows no pictures; if columns hold them, name these in input.image_columns"
    assert hint in command("validate", str(tmp_path / "job.yaml")).stdout
    shown = command("validate", str(tmp_path / "job.yaml"), "--set", "input.image_columns=[photo]").stdout
    assert "valid" in shown
    assert hint not in shown


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for index in range(6):
        Image.new("RGB", (90 + 30 * index, 60), (index, 0, 0)).save(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "6.png").write_bytes(b"")
    spec = {
        "input": {"path": str(tmp_path / "in")},
        "prompt": {"template": "What is it?"},
        "output": {"path": str(tmp_path / "out")},
        "batching": {"max_batch_rows": 4},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path / "job.yaml"


def test_plan_counts_without_a_model(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(job_file), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rows"], plan["samples"], plan["pictures"], plan["distinct_pictures"]) == (7, 7, 6, 6)
    assert plan["bad_samples"] == {"image_empty": 1}
    assert plan["examples"]["image_empty"].startswith("6.png: picture 1: the picture has zero bytes")
    assert sum(plan["histogram"].values()) == 6
    assert plan["batches"] == 2
    assert main(["plan", str(job_file), "--limit", "3"]) == 0
    assert "rows             3" in capsys.readouterr().out
    assert not (job_file.parent / "out").exists()


def test_a_column_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"titel": ["a"]}), tmp_path / "rows.parquet")
    spec = {"input": {"path": str(tmp_path / "rows.parquet")}, "output": {"path": str(tmp_path / "out")}}
    spec["prompt"] = {"template": "{title}?"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    finished = command("run", str(tmp_path / "job.yaml"))
    assert finished.returncode == 2
    assert "prompt.template: no column 'title'; did you mean 'titel'?" in finished.stderr
    assert not (tmp_path / "out").exists()


def test_the_schema_accepts_what_the_spec_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"input": {"path": ["a"]}, "output": {"path": "b"}}, schema)
    jsonschema.validate({"input": {"path": "a"}, "generation": {"stop": "."}, "output": {"path": "b"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"input": {"path": ["a"]}, "output": {"path": "b"}, "modle": {}}, schema)
