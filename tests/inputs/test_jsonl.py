"""JSON lines: the OpenAI batch form, plain rows, lines that are broken, and how files are cut."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_job.errors import InputError, SpecError
from ray_job.inputs.formats.text import jsonl
from ray_job.inputs.formats.text.lines import iter_lines
from ray_job.inputs.pictures.decode import pictures_of
from ray_job.inputs.pictures.references import read_picture
from ray_job.inputs.source import iter_tables
from ray_job.spec import GenerationParams, LimitsSpec

from .conftest import ids_of, opened, rows_of, write_lines

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "hé?"}]}]


def _request(custom_id: Any = "r", **body: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": MESSAGES, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _errors(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["_rj_read_error"] and row["_rj_read_error"]["code"] for row in rows]


def test_the_openai_batch_form(tmp_path: Path) -> None:
    body = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "stream": False, "n": 1}
    off = {"logprobs": False, "presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "user": "u"}
    flat = {"custom_id": "c", "messages": MESSAGES, "max_completion_tokens": 7, "top_k": -1, "method": "POST"}
    source = opened(
        write_lines(tmp_path / "a.jsonl", [_request("a", **body, **off), _request("b", stop=None), flat]), template=None
    )
    assert source.id_field == pa.field("row_id", pa.string())
    assert source.columns.names == ["messages", "params"]
    assert (source.kept, source.image_columns, source.overrides_column) == ((), (), "params")
    assert source.prompt.messages_column == "messages"
    rows = rows_of(source)
    assert [row["row_id"] for row in rows] == ["a", "b", "c"]
    assert all(json.loads(row["messages"]) == MESSAGES for row in rows)
    assert [json.loads(row["params"]) for row in rows] == [
        {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"]},
        {},
        {"max_new_tokens": 7, "top_k": 0},
    ]
    assert _errors(rows) == [None] * 3


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"n": 2}, "n: 2"),
        ({"logprobs": True, "top_logprobs": 5}, "logprobs: true, top_logprobs: 5"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temprature": 0}, "temprature"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens and max_tokens differ"),
        ({"max_tokens": 5, "max_new_tokens": 6}, "max_new_tokens and max_tokens differ (6 and 5)"),
        ({"n": True}, "n: true"),
        ({"min_p": 0.1}, "min_p: 0.1"),
        ({"ignore_eos": True}, "ignore_eos: true"),
        ({"skip_special_tokens": False}, "skip_special_tokens: false"),
        ({"min_tokens": 3}, "min_tokens: 3"),
        ({"logit_bias": {"5": -100}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(tmp_path: Path, body: dict[str, Any], named: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**_request("a", **body), "tag": "t"}, _request("b")])
    rows = rows_of(opened(path, template=None))
    assert _errors(rows) == ["params_invalid", None]
    assert named in rows[0]["_rj_read_error"]["message"]
    assert (rows[0]["row_id"], rows[0]["tag"]) == ("a", "t"), "the row keeps its id and its columns"


def test_what_changes_no_answer_is_no_error(tmp_path: Path) -> None:
    """What clients of OpenAI, Azure and vLLM write without asking for anything."""
    nulls = dict.fromkeys(("stop", "n", "logprobs", "seed", "tools", "logit_bias", "response_format", "anything"))
    vllm = {"repetition_penalty": 1.0, "min_p": 0.0, "top_k": -1, "skip_special_tokens": True, "ignore_eos": False}
    more = {"chat_template_kwargs": {}, "min_tokens": 0, "n": 1.0, "presence_penalty": 0.0, "top_logprobs": 0}
    azure = {**_request("azure", max_tokens=8.0, max_completion_tokens=8), "url": "/chat/completions"}
    lines = [_request("nulls", **nulls), _request("vllm", **vllm, **more), azure, _request("top_p", top_p=0)]
    rows = rows_of(opened(write_lines(tmp_path / "a.jsonl", lines), template=None))
    assert _errors(rows) == [None] * 4
    defaults = GenerationParams()
    params = [defaults.overridden(json.loads(row["params"])).model_dump(exclude_defaults=True) for row in rows]
    assert params == [{}, {}, {"max_new_tokens": 8}, {"top_p": 0.0}]


def test_every_broken_line_is_a_row(tmp_path: Path) -> None:
    lines = [
        _request("good"),
        "",
        "{broken",
        "[1]",
        '{"custom_id": "nan", "messages": NaN}',
        {"body": {"messages": MESSAGES}},
        {"custom_id": "", "messages": MESSAGES},
        {"custom_id": ["x"], "messages": MESSAGES},
        {"custom_id": "no messages", "body": {}},
        {"custom_id": "empty", "body": {"messages": []}},
        {"custom_id": "text", "body": "x"},
        {"custom_id": "url", "url": "/v1/embeddings", "body": {"messages": MESSAGES}},
        '{"custom_id": "half", "messages": [{"role": "user", "content": "\\ud800"}]}',
        "[" * 100_000,
        '{"custom_id": ' + "9" * 5000 + "}",
        {"custom_id": 17, "messages": MESSAGES},
    ]
    rows = rows_of(opened(write_lines(tmp_path / "a.jsonl", lines), template=None))
    assert [row["row_id"] for row in rows] == [
        "good", "a.jsonl#3", "a.jsonl#4", "nan", "a.jsonl#6", "a.jsonl#7", "a.jsonl#8", "no messages", "empty",
        "text", "url", "half", "a.jsonl#14", "a.jsonl#15", "17",
    ]  # fmt: skip
    assert _errors(rows) == [None, *["row_malformed"] * 13, None]
    assert rows[1]["_rj_read_error"]["message"].startswith("a.jsonl, line 3: not JSON")
    assert "surrogate" in rows[-4]["_rj_read_error"]["message"]


def test_bytes_that_are_not_utf8_and_a_mark_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"x": 1}\r\n \r\n{"x": 2}\r\n{"x": "\xff"}')
    rows = rows_of(opened(path))
    assert [(row["row_id"], row["x"]) for row in rows] == [("a.jsonl#1", 1), ("a.jsonl#3", 2), ("a.jsonl#4", None)]
    assert _errors(rows) == [None, None, "row_malformed"]


def test_plain_rows_have_typed_columns(tmp_path: Path) -> None:
    lines = [
        {"id": "x", "i": 1, "f": 1, "b": True, "t": "s", "o": {"k": "é"}, "m": 1, "big": 2**70, "z": None},
        {"id": "y", "i": None, "f": 0.5, "b": False, "m": "s", "late": 1.5},
    ]
    rows = rows_of(opened(write_lines(tmp_path / "a.jsonl", lines), input={"id_column": "id"}))
    assert rows[0] == {
        "row_id": "x", "i": 1, "f": 1.0, "b": True, "t": "s", "o": '{"k": "é"}', "m": "1", "big": str(2**70), "z": None,
        "late": None, "_rj_read_error": None,
    }  # fmt: skip
    assert rows[1]["m"] == "s"
    assert rows[1]["late"] == 1.5


def test_a_column_has_a_type_that_every_value_has_however_late_it_comes(tmp_path: Path) -> None:
    lines = [{"n": 1, "b": True, "f": 1, "x": 1}] * 5000
    late = [{"n": 2**53 + 1}, {"b": 1}, {"f": 0.5}, {"x": {"k": 1}}, {"image": "p.png", "new": 7}]
    rows = rows_of(opened(write_lines(tmp_path / "a.jsonl", lines + late)), 1000)
    names = ("n", "b", "f", "x", "image", "new")
    assert [rows[0][name] for name in names] == [1, "true", 1.0, "1", None, None]
    assert [row[name] for row, name in zip(rows[-5:-1], names, strict=False)] == [2**53 + 1, "1", 0.5, '{"k": 1}']
    assert (rows[-1]["image"], rows[-1]["new"]) == (["p.png"], 7)
    assert _errors(rows) == [None] * 5005


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63), 2**63, 2**70])
def test_long_whole_numbers_among_fractions_keep_their_digits(tmp_path: Path, number: int) -> None:
    lines = [{"id": "a", "n": number, "short": 3}, {"id": "b", "n": 1.5, "short": 0.5}]
    source = opened(write_lines(tmp_path / "a.jsonl", lines), input={"id_column": "id"})
    rows = rows_of(source)
    assert [(row["n"], row["short"]) for row in rows] == [(str(number), 3.0), ("1.5", 0.5)]
    assert _errors(rows) == [None, None]


def test_keys_that_are_data_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.inputs.formats.text.json_columns.MAX_KEYS", 3)
    lines: list[Any] = [{"image": "p.png", f"k{i}": i} for i in range(9)]
    source = opened(write_lines(tmp_path / "a.jsonl", lines))
    assert source.columns.names == ["image", "k0", "k1"]
    assert source.num_rows == 9


@pytest.mark.parametrize(("first", "settled"), [("prompt", (None, "{prompt}")), ("messages", ("messages", None))])
def test_the_first_object_that_asks_decides_how_all_are_asked(
    tmp_path: Path, first: str, settled: tuple[str | None, str | None]
) -> None:
    asks: dict[str, Any] = {"prompt": {"prompt": "what?"}, "messages": {"messages": MESSAGES}}
    other = next(name for name in asks if name != first)
    source = opened(write_lines(tmp_path / "a.jsonl", [{"x": 1}, asks[first], asks[other]]), template=None)
    assert (source.prompt.messages_column, source.prompt.template) == settled
    assert source.num_rows == 3


def test_pictures_and_questions_in_plain_rows(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "p.png").write_bytes(png)
    lines = [
        {"images": "p.png", "qs": ["a?", "b?"]},
        {"images": ["p.png", {"path": "p.png", "bytes": None}], "qs": "a?"},
        {"images": {"url": "p.png"}, "qs": []},
        {"images": None, "qs": None},
        {"images": 5, "qs": [1]},
    ]
    source = opened(write_lines(tmp_path / "a.jsonl", lines), prompt={"questions_column": "qs"})
    rows = rows_of(source)
    assert [len(pictures_of(row, source.image_columns)) for row in rows[:4]] == [1, 2, 1, 1]
    assert read_picture(rows[1]["images"][1], root=source.image_root, limits=LimitsSpec()) == png
    assert [row["qs"] for row in rows] == [["a?", "b?"], ["a?"], [], None, None]
    assert _errors(rows) == [None] * 4 + ["row_malformed"]


def test_an_overrides_column_of_ones_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**_request("a", max_tokens=3), "mine": {"top_k": 2}}])
    source = opened(path, template=None, generation={"overrides_column": "mine"})
    assert source.overrides_column == "mine"
    assert rows_of(source)[0]["mine"] == '{"top_k": 2}'
    assert source.columns.names == ["messages", "mine"]


def test_a_template_over_batch_lines_makes_them_plain_rows(tmp_path: Path) -> None:
    source = opened(write_lines(tmp_path / "a.jsonl", [_request("a")]), template="{method}")
    assert rows_of(source)[0]["method"] == "POST"
    assert source.overrides_column is None


def test_ids_that_are_numbers_stay_numbers_and_are_checked_at_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": i} for i in (5, 6)])
    source = opened(path, input={"id_column": "id"})
    assert source.id_field.type == pa.int64()
    assert ids_of(source) == [5, 6]
    for bad in ("{broken", '{"x": 1}', '{"id": 1.5}'):
        path = write_lines(tmp_path / "a.jsonl", [{"id": 5}, bad])
        if "1.5" in bad:
            with pytest.raises(SpecError, match="type double"):
                opened(path, input={"id_column": "id"})
        else:
            with pytest.raises(InputError, match=r"a\.jsonl, line 2: .*Ids are numbers here"):
                opened(path, input={"id_column": "id"})


def test_a_line_without_end_is_an_error_and_not_held(tmp_path: Path) -> None:
    lines = [{"x": "short"}, {"x": "l" * 5000}, {"x": "after"}]
    rows = rows_of(opened(write_lines(tmp_path / "a.jsonl", lines), limits={"max_image_bytes": 1000}))
    assert [row["x"] for row in rows] == ["short", None, "after"]
    assert "longer than 4000 bytes" in rows[1]["_rj_read_error"]["message"]


def test_no_object_at_all_is_fatal_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no JSON object"):
        opened(write_lines(tmp_path / "a.jsonl", ["hello", "[1]"]))
    with pytest.raises(InputError, match=r"a\.jsonl: has no bytes"):
        opened(write_lines(tmp_path / "a.jsonl", []))
    with pytest.raises(SpecError, match=r"no column 'custom'; did you mean 'custom_id'\?"):
        opened(write_lines(tmp_path / "a.jsonl", [_request()]), template=None, input={"id_column": "custom"})


def test_what_lies_behind_a_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_MIN_LEARNED_ROWS", 5)
    first = write_lines(tmp_path / "a.jsonl", [{"x": 1}, "", {"x": 2}, {"x": 3}])
    write_lines(tmp_path / "b.jsonl", [{"x": 4}, {"x": 5, "late": 1}, {"x": "six"}])
    (tmp_path / "c.jsonl").write_bytes(first.read_bytes())
    columns = {limit: opened(tmp_path, input={"limit": limit}).columns for limit in (None, 2, 6)}
    assert columns[2] == pa.schema({"x": pa.int64(), "late": pa.int64()}), "the fifth row is still learned"
    assert columns[6] == columns[None] == pa.schema({"x": pa.string(), "late": pa.int64()})
    assert [row["x"] for row in rows_of(opened(tmp_path, input={"limit": 2}))] == [1, 2]
    with gzip.open(tmp_path / "d.jsonl.gz", "wb") as stream:
        stream.write(first.read_bytes())
    assert ids_of(opened(tmp_path, input={"limit": 11})) == ids_of(opened(tmp_path))[:11]


def test_compressed_files(tmp_path: Path) -> None:
    content = "".join(json.dumps({"x": i}) + "\n" for i in range(5000)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    source = opened(tmp_path / "a.jsonl.gz")
    assert len(source.splits) == 1
    rows = rows_of(source, 999)
    assert [row["x"] for row in rows] == list(range(5000))
    assert rows[-1]["row_id"] == "a.jsonl.gz#5000"


class _Dribble(io.BytesIO):
    """Gives a few bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3)


@given(st.lists(st.binary(max_size=12)), st.booleans(), st.integers(1, 15))
@example([codecs.BOM_UTF8], False, 3)
@example([codecs.BOM_UTF8 + b"{}", codecs.BOM_UTF8], True, 9)
def test_lines_are_those_between_newlines(pieces: list[bytes], ends: bool, cap: int) -> None:
    content = b"\n".join(pieces) + (b"\n" if ends else b"")
    without_mark = content.removeprefix(codecs.BOM_UTF8)  # at the file's start it is no text
    expected = [(n, line.removesuffix(b"\r")) for n, line in enumerate(without_mark.split(b"\n"), 1)]
    found = list(iter_lines(_Dribble(content), cap))
    for line in found:
        shown = content[line.start : line.end].rstrip(b"\n").removesuffix(b"\r")
        assert (shown.removeprefix(codecs.BOM_UTF8) if line.number == 1 else shown) == dict(expected)[line.number]
        assert (line.content is None) == (len(content.split(b"\n")[line.number - 1]) > cap)
    short = [(n, line) for n, line in expected if line.strip() and len(content.split(b"\n")[n - 1]) <= cap]
    assert [(line.number, line.content) for line in found if line.content is not None] == short


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(['{"x": "é"}', "", "  ", "{bad", '{"x": null}', '{"y": "' + "z" * 50 + '"}']), max_size=40
    ),
    split_rows=st.integers(1, 10),
    split_bytes=st.integers(10, 200),
    limit=st.none() | st.integers(1, 50),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_ids_and_rows_do_not_depend_on_splits(
    lines: list[str], split_rows: int, split_bytes: int, limit: int | None, newline: str
) -> None:
    lines = ['{"x": "first", "y": ""}', *lines]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(newline.join(lines).encode())
        whole = rows_of(opened(path, input={"limit": limit}), 1000)
        patch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", split_rows)
        patch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_BYTES", split_bytes)
        source = opened(path, input={"limit": limit})
        assert rows_of(source, 2) == whole
    assert [row["row_id"] for row in whole] == [
        f"a.jsonl#{number}" for number, line in enumerate(lines, 1) if line.strip()
    ][:limit]


def test_jsonl_on_s3(s3: Callable[[str, bytes], str], png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", 2)
    s3("lines/p.png", png)
    content = "".join(json.dumps({"image": "p.png", "n": n}) + "\n" for n in range(5)).encode()
    uri = s3("lines/a.jsonl", content)
    s3("lines/sub/b.jsonl.gz", gzip.compress(content))
    source = pickle.loads(pickle.dumps(opened(uri)))
    assert [split.num_rows for split in source.splits] == [2, 2, 1]
    row = rows_of(source)[-1]
    assert row["row_id"] == "a.jsonl#5"
    assert read_picture(row["image"][0], root=source.image_root, limits=LimitsSpec()) == png
    both = opened("s3://pictures/lines", input={"format": "jsonl"})
    assert ids_of(both)[4:6] == ["a.jsonl#5", "sub/b.jsonl.gz#1"]
    assert both.skipped.num_files == 1
    assert sum(table.num_rows for table in iter_tables(both)) == 10
