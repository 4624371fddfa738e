"""From a folder or a pinned hub id to a local folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from ray_job.errors import ModelError
from ray_job.models.hub import _PATTERNS, snapshot_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_local_folder(tmp_path: Path) -> None:
    assert snapshot_folder(tmp_path) == tmp_path
    assert snapshot_folder(str(tmp_path), revision=None) == tmp_path


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where/at/all", Path("some/folder"), "../a"])
def test_no_such_folder(name: str | Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        snapshot_folder(name, COMMIT)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12], COMMIT.upper()])
def test_a_hub_id_must_be_pinned(revision: str | None) -> None:
    with pytest.raises(ModelError, match="pin it to a full commit"):
        snapshot_folder("some-org/some-model", revision)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "a" * 300, "model\0"])
def test_names_no_file_system_can_have(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such folder|cannot be looked for"):
        snapshot_folder(name)


def test_a_name_the_hub_refuses(tmp_path: Path) -> None:
    found = _offline(tmp_path, "some--org/a..b")
    assert "ModelError: model 'some--org/a..b' at " in found.stderr


def test_a_pinned_snapshot_from_the_hubs_own_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--some-org--some-model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    found = _offline(tmp_path, "some-org/some-model")
    assert found.stdout.strip() == str(snapshot)


def test_neither_code_nor_pickles_are_asked_for() -> None:
    wanted = ["config.json", "tokenizer.json", "chat_template.jinja", "model-00001-of-00002.safetensors"]
    unwanted = ["modeling_x.py", "pytorch_model.bin", "weights.pt", "model.pkl", "tokenizer.model", "README.md"]
    assert list(filter_repo_objects([*wanted, *unwanted], allow_patterns=_PATTERNS)) == wanted


def test_a_failed_download(tmp_path: Path) -> None:
    found = _offline(tmp_path, "some-org/another")
    assert "ModelError: model 'some-org/another' at " in found.stderr
    assert "the download failed" in found.stderr


def _offline(cache: Path, name: str) -> subprocess.CompletedProcess[str]:
    # The hub library reads its settings when it is imported: hence a process of its own.
    code = f"from ray_job.models.hub import snapshot_folder; print(snapshot_folder({name!r}, {COMMIT!r}))"
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
