"""A model in a bucket: fetched once on a machine however many ask, whole or not at all, and anew when it changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from pyarrow import fs

from ray_job.errors import ModelError
from ray_job.models.loading import load_processor, model_folder
from ray_job.models.store import download_model
from ray_job.spec import ModelSpec

_ASK = "import logging, sys; logging.basicConfig(level='INFO'); from ray_job.models.store import download_model; " + (
    "print(download_model(sys.argv[1], with_weights=True))"
)


@pytest.fixture
def store(s3_store: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fs.S3FileSystem:
    monkeypatch.setenv("RAY_JOB_CACHE", str(tmp_path / "cache"))
    s3_store.create_dir("models")
    return s3_store


@pytest.fixture
def uri(store: fs.S3FileSystem) -> str:
    """The demo model in a bucket, with a chat template, and with code beside it that is none of ours."""
    fs.copy_files(str(model_folder(ModelSpec())), "models/demo", destination_filesystem=store)
    for name, content in (("modeling_phi3_v.py", b"raise SystemExit('executed')"), ("weights.pkl", b"")):
        with store.open_output_stream(f"models/demo/{name}") as stream:
            stream.write(content)
    with store.open_output_stream("models/demo/chat_template.jinja") as stream:
        stream.write(b"{{ messages }}")
    return "s3://models/demo"


def test_processes_of_one_machine_download_once(uri: str, store: fs.S3FileSystem) -> None:
    folder = download_model(uri, with_weights=False)
    assert (folder / "config.json").exists()
    assert not (folder / "model.safetensors").exists()
    model = ModelSpec(path=uri)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert load_processor(model).options == load_processor(ModelSpec()).options

    asking = [
        subprocess.Popen(
            [sys.executable, "-c", _ASK, uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60) for process in asking]
    assert {out.strip() for out, _ in said} == {str(folder)}, said
    assert sum(err.count("model.safetensors") for _, err in said) == 1, said
    original = model_folder(ModelSpec()) / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == original.read_bytes()
    assert not [*folder.glob("*.py"), *folder.glob("*.pkl")]

    with store.open_output_stream("models/demo/generation_config.json") as stream:
        stream.write(b"{}")
    assert download_model(uri, with_weights=True) != folder


def test_a_killed_process_leaves_no_lock(uri: str, store: fs.S3FileSystem) -> None:
    """The kernel releases the lock of a process that was killed; what it had half downloaded goes."""
    folder = download_model(uri, with_weights=False)
    (folder / ".model.safetensors.0.part").write_bytes(b"half")
    hold = (
        "import sys, time; from pathlib import Path; from ray_job.models.store import _locked\n"
        "with _locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(Timeout):
                FileLock(folder / ".lock", timeout=0).acquire()
            waiting = subprocess.Popen([sys.executable, "-c", _ASK, uri], stdout=subprocess.PIPE, text=True)
        finally:
            holder.kill()
    out, _ = waiting.communicate(timeout=60)
    assert out.strip() == str(folder)
    assert (folder / "model.safetensors").exists()
    assert not list(folder.glob(".*.part"))


def test_what_cannot_be_downloaded_says_why(uri: str, store: fs.S3FileSystem, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path: s3://models/absent"):
        download_model("s3://models/absent", with_weights=True)
    store.create_dir("empty")
    with pytest.raises(ModelError, match="holds no"):
        download_model("s3://empty", with_weights=True)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match="Set RAY_JOB_CACHE to a folder"):
        download_model(uri, with_weights=True)
