"""Folders that are no checkpoint of a vision-language model, or lack a part: errors that say what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_job.errors import ModelError
from ray_job.models.auto.processor import LibraryProcessor
from tests.models.auto.conversations import user


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a checkpoint, to change."""
    return Path(shutil.copytree(checkpoint("qwen2_vl"), tmp_path / "model"))


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        LibraryProcessor.from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", "bert", "phi4mm", None])
def test_models_of_text_alone_and_unknown_ones(tmp_path: Path, model_type: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    refused(tmp_path, f"model_type is '{model_type}', for which the library has no .*processor. What runs: .*Qwen2-VL")


@pytest.mark.parametrize("model_type", ["whisper", "idefics2", "clip"])
def test_models_that_put_no_pictures_among_text(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    refused(tmp_path, f"model_type is '{model_type}', and .* places no pictures in texts. What runs: .*Qwen2-VL")


def test_a_folder_without_a_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    refused(folder, r"has no chat template: neither chat_template\.jinja nor .* Put the file")


def test_a_chat_template_of_the_tokenizers(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    ids = LibraryProcessor.from_pretrained(folder).encode_chat([user("What?")], [])
    (folder / "chat_template.jinja").unlink()
    changed(folder / "tokenizer_config.json", chat_template=template)
    assert LibraryProcessor.from_pretrained(folder).encode_chat([user("What?")], []) == ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for message in messages %}", "the chat template is no Jinja template: TemplateSyntaxError"),
        ("{{ raise_exception('never') }}", "the chat template fails on a user's message: never"),
        ("{{ messages[0].content.nothing.at_all }}", "the chat template fails on a user's message: UndefinedError"),
        ("Say something.", "does not show a user's text"),
    ],
)
def test_a_chat_template_that_is_none(folder: Path, template: str, message: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=message):
        LibraryProcessor.from_pretrained(folder)


def test_a_chat_template_does_not_reach_beyond_its_sandbox(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ModelError, match="SecurityError"):
        LibraryProcessor.from_pretrained(folder)


def test_a_chat_template_for_texts_alone_gets_texts(folder: Path) -> None:
    template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    processor = LibraryProcessor.from_pretrained(folder)
    placeholder = processor.placeholder(56, 56)
    assert placeholder is not None
    ids = processor.encode_chat([user("see ", 1, "?")], [placeholder])
    assert ids.count(-1) == placeholder.num_tokens
    assert processor.decode([token for token in ids if token >= 0]) == "user: see ?\n"


def test_a_chat_template_that_prints_lists_gets_texts(folder: Path) -> None:
    """Instead of what Python shows of a list."""
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    ids = LibraryProcessor.from_pretrained(folder).encode_chat([user("What?")], [])
    assert LibraryProcessor.from_pretrained(folder).decode(ids) == "What?"


def test_the_day_of_a_prompt_is_always_the_same(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + template)
    processor = LibraryProcessor.from_pretrained(folder)
    assert processor.decode(processor.encode_chat([user("x")], [])).startswith("26 Jul 2024")


def test_code_of_the_folder_is_not_run(folder: Path) -> None:
    (folder / "code.py").write_text("raise SystemExit('executed')")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        changed(folder / name, auto_map={"AutoConfig": "code.A", "AutoTokenizer": ["code.A", "code.A"]})
    assert LibraryProcessor.from_pretrained(folder).encode_chat([user("What?")], [])


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, "download the model's files again")


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_a_file_that_is_broken(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    refused(folder, "cannot be read as JSON")


def test_a_picture_token_that_is_none(folder: Path) -> None:
    changed(folder / "config.json", image_token_id=99999)
    refused(folder, "image_token_id is 99999, which names no token")
