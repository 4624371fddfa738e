"""The one reader of a model folder's JSON: an object comes out, or a ModelError that names the file and the fault."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_job.errors import ModelError
from ray_job.models.json_file import read_json_object

MALFORMED = {
    "empty": (b"", "line 1, column 1: Expecting value"),
    "cut off": (b'{"a": 1,', "line 1, column"),
    "a comma too many": (b'{\n"a": 1,\n}', r"line \d, column \d"),
    "two objects": (b"{}\n{}", "line 2, column 1: Extra data"),
    "an array": (b"[1]", "holds a JSON array, not a JSON object"),
    "a string": (b'"config"', "holds a JSON string"),
    "a number": (b"7", "holds a JSON number"),
    "true": (b"true", "holds a JSON boolean"),
    "null": (b"null", "holds a JSON null"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "it is UTF-16, not UTF-8"),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-be"), "cannot be read as JSON"),
    "UTF-32": ('{"a": 1}'.encode("utf-32"), "it is UTF-16, not UTF-8|it is not UTF-8"),
    "Latin-1": ('{"é": 1}'.encode("latin-1"), r"not UTF-8 text \(byte 2\)"),
    "binary": (bytes(range(256)), "cannot be read as JSON"),
    "a pickle": (b"\x80\x04}q\x00.", r"not UTF-8 text \(byte 0\)"),
    "too deep": (b'{"a":' * 100_000, "nested too deeply"),
    "too deep, closed": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    "half a character": (rb'{"a": "\ud800"}', r"'\\ud800' is half a character"),
    "half a character as a key": (rb'{"\uDFFF": 1}', r"'\\udfff' is half a character"),
    "a page of HTML": (b"<!DOCTYPE html><html></html>", "Expecting value"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Expecting value"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str, tmp_path: Path) -> None:
    content, message = MALFORMED[name]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_json_object(path)
    said = str(caught.value)
    assert str(path) in said
    assert "download the model's files again" in said
    said.encode()  # can be printed
    assert len(said) < 1000


def test_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ('{"é": "🙂", "n": [1, null]}', r'{"é": "\ud83d\ude42", "n": [1, null]}'):
        for mark in ("", "\ufeff"):
            path.write_text(mark + text, encoding="utf-8")
            assert read_json_object(path) == {"é": "🙂", "n": [1, None]}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist; look elsewhere"):
        read_json_object(tmp_path / "config.json", "look elsewhere")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json is not a regular file"):
        read_json_object(tmp_path / "config.json")
    os.mkfifo(tmp_path / "pipe.json")  # to open it would wait for ever
    with pytest.raises(ModelError, match=r"pipe\.json is not a regular file"):
        read_json_object(tmp_path / "pipe.json")
    with pytest.raises(ModelError, match="File name too long"):
        read_json_object(tmp_path / ("a" * 300))
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with pytest.raises(ModelError, match=r"loop\.json"):
        read_json_object(tmp_path / "loop.json")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ModelError, match="over 256 MiB"):
        read_json_object(tmp_path / "config.json")
