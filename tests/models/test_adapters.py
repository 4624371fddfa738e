"""`model.adapter`: what is looked at before Ray starts, without peft."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_job.errors import ModelError, SpecError
from ray_job.models.adapters import adapter_folder, check_adapter
from ray_job.models.loading import settle_model
from ray_job.spec import JobSpec, ModelSpec

LORA: Mapping[str, Any] = {"peft_type": "LORA", "base_model_name_or_path": "org/Base-Model", "r": 4}


def write(
    folder: Path, config: Mapping[str, Any] | None = LORA, weights: str | None = "adapter_model.safetensors"
) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    if weights is not None:
        (folder / weights).write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("path", ["org/base-model", "/models/Base-Model/", "s3://bucket/base-model"])
def test_the_base_under_another_roof_is_the_same(path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_adapter(ModelSpec(path=path, adapter=str(write(tmp_path / "adapter"))))
    assert caplog.records == []


def test_another_base_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_adapter(ModelSpec(path="org/other", adapter=str(write(tmp_path / "adapter"))))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "trained on org/Base-Model, and model.path is org/other" in record.getMessage()


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        (LORA, None, "holds no adapter_model.safetensors; give the folder"),
        (LORA, "adapter_model.bin", "a pickle, which can execute code"),
        (None, "adapter_model.safetensors", "adapter_config.json does not exist; give the folder"),
        ({**LORA, "peft_type": "PROMPT_TUNING"}, "adapter_model.safetensors", "'PROMPT_TUNING'; allowed: LORA"),
        ({"r": 4}, "adapter_model.safetensors", "peft_type is None; allowed: LORA"),
        ({**LORA, "alora_invocation_tokens": [1]}, "adapter_model.safetensors", "alora_invocation_tokens is set"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    config: Mapping[str, Any] | None, weights: str | None, said: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "adapter", config, weights)
    with pytest.raises(ModelError, match="adapter") as caught:
        check_adapter(ModelSpec(adapter=str(folder)))
    assert said in str(caught.value)


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds a whole model, not an adapter; give it as model\.path"):
        check_adapter(ModelSpec(adapter=str(tmp_path)))


def test_no_such_folder_and_no_commit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.adapter .*: no such folder"):
        check_adapter(ModelSpec(adapter=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match=r"^model\.adapter 'org/adapter' on the hub: revision is None; pin it"):
        check_adapter(ModelSpec(adapter="org/adapter"))


def test_from_a_bucket(tmp_path: Path, s3_store: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CACHE", str(tmp_path / "cache"))
    fs.copy_files(
        str(write(tmp_path / "adapter")),
        "tuned/adapter",
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=_made(s3_store, "tuned"),
    )
    model = ModelSpec(path="org/base-model", adapter="s3://tuned/adapter")
    check_adapter(model)
    folder = adapter_folder(model)
    assert folder is not None
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"
    with pytest.raises(ModelError, match=r"^model\.adapter: "):
        check_adapter(ModelSpec(adapter="s3://tuned/absent"))


def _made(store: fs.S3FileSystem, bucket: str) -> fs.S3FileSystem:
    store.create_dir(bucket)
    return store


def test_workers_start_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    settled = settle_model(ModelSpec(adapter="adapter"))
    assert (settled.path, settled.adapter) == ("builtin:demo", str(tmp_path / "adapter"))
    assert settle_model(ModelSpec(adapter="s3://tuned/adapter")).adapter == "s3://tuned/adapter"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"adapter_revision": "a" * 40}, "there is no adapter"),
        ({"adapter": "folder", "path": "builtin:noop"}, "adapter: builtin:noop has no weights"),
        ({"quantization": "int8", "path": "builtin:noop"}, "quantization: builtin:noop has no weights"),
        ({"quantization": "int8", "dtype": "float16"}, "exceed what float16 holds; set dtype to bfloat16"),
        ({"quantization": "int4"}, "int4"),
    ],
)
def test_a_spec_that_means_nothing(model: Mapping[str, str], said: str) -> None:
    data = {"input": {"path": "rows.parquet"}, "output": {"path": "out"}, "prompt": {"template": "What?"}}
    with pytest.raises(SpecError, match=r"spec: 1 problem") as caught:
        JobSpec.from_dict({**data, "model": dict(model)})
    assert said in str(caught.value)


def test_looking_at_an_adapter_imports_neither_peft_nor_torch(tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter")
    code = (
        "import sys; from ray_job.models.adapters import check_adapter; from ray_job.spec import ModelSpec; "
        f"check_adapter(ModelSpec(path='org/base-model', adapter={str(folder)!r})); "
        "print(sorted({'torch', 'peft', 'transformers', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
