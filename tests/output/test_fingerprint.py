"""The fingerprint sees what can change an answer, in the files too, and says which field differs."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ray_job.errors import ModelError
from ray_job.output import fingerprint
from ray_job.output.fingerprint import differences, digest, file_digests
from ray_job.spec import JobSpec


@pytest.mark.parametrize("whole_bytes", [2**28, 100])
def test_weights_are_known_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int) -> None:
    """Sampled (second case) as well as whole."""
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", whole_bytes)
    tensors = {name: np.arange(5000, dtype=np.float32) for name in "abc"}
    file = tmp_path / "model.safetensors"
    seen = set()
    for change in (None, ("b", 0), ("b", -1), ("c", 4999)):
        changed = {name: values.copy() for name, values in tensors.items()}
        if change is not None:
            changed[change[0]][change[1]] += 1
        save_file(changed, file)
        seen.add(file_digests(tmp_path)["model.safetensors"])
    save_file(tensors, file)
    os.utime(file, (1, 1))
    assert file_digests(tmp_path)["model.safetensors"] in seen
    assert len(seen) == 4
    save_file({"a": tensors["a"]}, file)
    assert file_digests(tmp_path)["model.safetensors"] not in seen
    file.write_bytes(b"\xff" * 300)
    assert file_digests(tmp_path)["model.safetensors"] not in seen
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in [*seen, *file_digests(tmp_path).values()])


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"[]",
        b"{" + b'"a":{' * 50_000,
        b'{"a": {"data_offsets": [1, "b"]}}',
        b'{"a": {"data_offsets": [[1], 2]}}',
        b'{"a": {"data_offsets": [-100, -1]}}',
        b'{"a": {"data_offsets": [9, 2]}}',
        b'{"a": {"data_offsets": [0, 1e999]}}',
        b'{"a": {"data_offsets": 7}}',
    ],
    ids=range(9),
)
def test_a_malformed_header_is_left_for_loading_to_refuse(
    header: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in a digest of what is there, and no traceback; another header gives another digest."""
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 5)
    digests = set()
    for content in (header, header + b" "):
        for size in (len(content), 2**63):
            (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + content)
            digests.add(file_digests(tmp_path)["model.safetensors"])
    assert len(digests) == 2


def test_a_large_json_file_is_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a tokenizer's is: only weights have a header that says where to look."""
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 100)
    file, digests = tmp_path / "tokenizer.json", set()
    for middle in "xy":
        file.write_text('{"vocab": "' + "a" * 10_000 + middle + "a" * 10_000 + '"}')
        digests.add(file_digests(tmp_path)["tokenizer.json"])
    assert len(digests) == 2


def test_only_files_a_model_is_made_of_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # to read it would wait for ever
    assert list(file_digests(tmp_path)) == ["config.json"]
    with pytest.raises(ModelError, match="cannot be read"):
        file_digests(tmp_path / "absent")


def test_differences_are_named_with_both_values_and_an_open_dtype_agrees() -> None:
    old = {"model.dtype": "bfloat16", "prompt.system": None, "model.files.a": "1"}
    new = {"model.dtype": "auto", "prompt.system": "x", "output.columns.y": "int64"}
    assert differences(old, new) == [
        'prompt.system: was null, is "x"',
        'model.files.a: was "1", is absent',
        'output.columns.y: was absent, is "int64"',
    ]
    assert differences(old, old) == []
    assert differences(old, {**old, "model.dtype": "float32"})
    assert digest(old) != digest(new)
    assert digest(old) == digest(dict(reversed(old.items())))


def test_the_order_of_a_schemas_keys_counts_and_no_form_leaves_no_field() -> None:
    def fields(generation: dict[str, Any]) -> dict[str, Any]:
        spec = JobSpec.from_dict({"input": {"path": "x"}, "output": {"path": "out"}, "generation": generation})
        return {name: value for name, value in fingerprint._flat(spec.answer_fields()) if "structured" in name}

    def of_keys(*names: str) -> dict[str, Any]:
        schema = {"type": "object", "properties": {name: {} for name in names}}
        return fields({"structured_outputs": {"json": schema}})

    assert fields({}) == {}, "so that outputs of before forms go on"
    assert digest(of_keys("a", "b")) != digest(of_keys("b", "a"))
    assert digest(of_keys("a")) != digest(of_keys())


@pytest.mark.parametrize(
    "changed",
    [
        {"encoding": "cp1252"},
        {"delimiter": ";"},
        {"column_names": ["a", "b"]},
        {"column_types": {"a": "int"}},
        {"id_column": "a"},
    ],
)
def test_how_text_files_are_read_counts_and_where_they_are_does_not(changed: dict[str, Any]) -> None:
    def fields(**sections: Any) -> dict[str, Any]:
        data = {"input": {"path": "x.csv", **sections}, "output": {"path": "out"}}
        return JobSpec.from_dict(data).answer_fields()

    assert fields(**changed) != fields()
    assert fields(path="y.csv", storage_options={"region": "eu"}, format="csv", limit=3) == fields()
