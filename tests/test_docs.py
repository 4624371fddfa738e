"""The README says what the code does: commands, columns, exit codes; and every field of the spec explains itself."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from pydantic import BaseModel

import ray_job.errors
from ray_job.cli import _parser
from ray_job.demo.json_answers import SHAPES_QUESTION, SHAPES_SCHEMA
from ray_job.errors import RayJobError
from ray_job.rows import output_schema
from ray_job.spec import JobSpec, StructuredOutputs
from ray_job.structured.arrow_types import arrow_type

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SCHEDULERS = dict(re.findall(r"<summary>(\w+)</summary>\n\n```python\n(.*?)```", README, re.DOTALL))


def commands() -> list[str]:
    (action,) = [action for action in _parser()._actions if action.dest == "command" or action.choices]
    assert action.choices is not None
    return list(action.choices)


def test_every_command_is_in_the_readme() -> None:
    assert [name for name in commands() if f"ray_job {name}" not in README] == []


def test_every_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"python -m ray_job (\w+)", README))
    assert named <= set(commands())


def test_every_output_column_is_in_the_readme() -> None:
    schema = output_schema(pa.string(), (), has_questions=True, form=StructuredOutputs.model_validate({"json": True}))
    assert [name for name in schema.names if f"| `{name}` |" not in README] == []


def test_every_exit_code_is_in_the_readme() -> None:
    kinds = [kind for kind in vars(ray_job.errors).values() if isinstance(kind, type) and issubclass(kind, RayJobError)]
    codes = {kind.exit_code for kind in kinds}
    assert {code for code in codes if f"| {code} |" not in README} == set()


def test_files_and_folders_the_readme_names_exist() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    tree = README.split("ray_job/\n  job.py")[1].split("```")[0]
    names = re.findall(r"(\w+\.py|\w+/)(?=\s)", "job.py" + tree)
    known = {path.name for path in (ROOT / "ray_job").rglob("*")} | {path.name for path in ROOT.iterdir()}
    assert [name for name in names if name.rstrip("/") not in known] == []


def test_the_readmes_own_job_is_a_valid_spec() -> None:
    job, in_a_form, over_vllm = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    assert JobSpec.from_dict(job).generation.max_new_tokens == 64
    assert JobSpec.from_dict(in_a_form).generation.structured_outputs is not None
    assert JobSpec.from_dict({**job, **over_vllm}).batching.engine == "vllm"


def test_the_readmes_form_is_the_demos_question() -> None:
    (form,) = re.findall(r"```yaml\n# shapes.yaml.*?```", README, re.DOTALL)
    given = yaml.safe_load(form.strip("`").removeprefix("yaml\n"))["generation"]["structured_outputs"]["json"]
    enums = [{name: part.get("enum") for name, part in each["properties"].items()} for each in (given, SHAPES_SCHEMA)]
    assert enums[0] == enums[1]
    assert arrow_type(given) == arrow_type(SHAPES_SCHEMA)
    assert SHAPES_QUESTION.startswith("Describe the shapes")


def test_the_types_of_json_schemas_are_those_of_the_readme() -> None:
    table = README.split("<!-- types -->")[1].split("<!-- /types -->")[0]
    rows = [line.strip("| ").rpartition(" | ") for line in table.strip().splitlines()[2:]]
    pairs = [(schema, type_) for cell, _, type_ in rows for schema in re.findall(r"`(\{.*?\})`", cell)]
    assert len(pairs) > 15
    assert [(schema, f"`{arrow_type(json.loads(schema))}`") for schema, _ in pairs] == pairs


def test_each_scheduled_job_submits_a_dated_run() -> None:
    assert set(SCHEDULERS) == {"Airflow", "Dagster", "Prefect"}
    for name, block in SCHEDULERS.items():
        compile(block, name, "exec")
        dated = re.sub(r"\{\{ ds }}|\{day}", "2026-11-22", block)
        said = " ".join(re.findall(r'"([^"]*)"', dated[dated.index("python -m ray_job") - 1 :]))
        arguments = _parser().parse_args(said.removeprefix("python -m ray_job ").split())
        assert (arguments.spec, arguments.job_id) == ("/jobs/job.yaml", "captions-2026-11-22"), name
        assert arguments.set == ["output.path=s3://answers/2026-11-22"], name


def test_the_two_commands_are_one_line_each() -> None:
    blocks = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(blocks) == 2
    for line in blocks:
        words = shlex.split(line)
        assert words[:3] == ["python3", "-m", "venv"]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".github/workflows/ci.yml"])
def test_what_is_installed_is_what_was_tested(document: str) -> None:
    installs = re.findall(r"pip install .*", (ROOT / document).read_text())
    assert installs
    assert [line for line in installs if "-c constraints.txt" not in line] == []


def test_files_and_tests_that_contributing_names_exist() -> None:
    named = re.findall(r"\]\(([^):]+)\)|`((?:ray_job|tests|\.ci)/[\w./]*)`|\s(tests/[\w/]+\.py)", CONTRIBUTING)
    paths = [path for groups in named for path in groups if path]
    assert len(paths) > 15
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []
    for file, test in re.findall(r"(tests/\S+\.py)::(\w+)", CONTRIBUTING):
        assert f"def {test}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("section", list(JobSpec.model_fields))
def test_every_field_of_the_spec_is_described(section: str) -> None:
    annotation = JobSpec.model_fields[section].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    plain = {"generation": {"top_p"}, "model": {"attention"}}  # their names are the description
    missing = [name for name, field in annotation.model_fields.items() if not field.description]
    assert set(missing) <= plain.get(section, set())
