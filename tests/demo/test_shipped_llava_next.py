"""The shipped LLaVA-NeXT: small, complete, right about unseen pictures by the library's own `generate`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer

import ray_job
from ray_job.demo.questions import Example, make_split
from ray_job.demo.training.evaluate import accuracy, overall
from ray_job.demo.training.llava_next import LlavaNext

FOLDER = Path(ray_job.__file__).parent / "demo" / "llava_next"
WRITTEN_BY_TRAINING = {"README.md", "model.safetensors"}


def without_json(example: Example) -> Example:
    """The demo's questions in JSON are younger than this model."""
    return dataclasses.replace(example, questions=tuple(qa for qa in example.questions if qa.kind != "json"))


def test_it_is_at_most_six_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 6_000_000


def test_its_files_are_those_that_training_writes(tmp_path: Path) -> None:
    LlavaNext().write_folder(tmp_path)
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in tmp_path.iterdir()} | WRITTEN_BY_TRAINING
    template = (folder / "chat_template.jinja" for folder in (FOLDER, tmp_path))
    assert len({path.read_text(encoding="utf-8") for path in template}) == 1


def test_its_tokenizer_spells_what_it_was_taught() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for example in map(without_json, make_split("test", 100)):
        for qa in example.questions:
            tokens = tokenizer.encode(qa.question, add_special_tokens=False).tokens
            assert not [token for token in tokens if len(token) == 1 and token.isalpha()], tokens


def test_its_weights_are_bfloat16() -> None:
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 – no mapping


@pytest.mark.data  # torchao, which transformers imports, is there and would say what of it does not load
def test_a_job_over_it_is_checked_without_a_word_of_other_libraries(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (90, 60), "red").save(tmp_path / "in" / "a.png")
    fields = {"input": {"path": str(tmp_path / "in")}, "output": {"path": str(tmp_path / "out")}}
    fields |= {"model": {"path": "builtin:demo-llava-next"}, "prompt": {"template": "What is it?"}}
    (tmp_path / "job.json").write_text(json.dumps(fields))
    command = [sys.executable, "-m", "ray_job", "validate", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "valid; 1 row" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_it_answers_unseen_questions() -> None:
    scores = accuracy(LlavaNext().answer(FOLDER), map(without_json, make_split("test", 100)))
    assert overall(scores) >= 0.90, scores
