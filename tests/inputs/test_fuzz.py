"""Damaged files and odd values: an error row or a clear message, never a crash.

Pictures, JSONL lines and Parquet files are mutated; messages, parameters, questions, pictures and template fields get
values of any kind, as text of JSON and as Arrow's own. `RAY_JOB_FUZZ=20` makes it twenty times as many.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ray_job import JobSpec
from ray_job.arrow.values import prompt_values
from ray_job.errors import ErrorCode, RayJobError
from ray_job.inputs.source import iter_tables
from ray_job.rows import POSITION, ROW_ID, SAMPLE_TYPE, SAMPLES
from ray_job.stages.open_job import open_job
from ray_job.stages.prepare import Preparer
from tests.memory import forget_peak, now_mib, peak_mib

from ..columns import columns, far
from .conftest import encoded, noise

TIMES = int(os.environ.get("RAY_JOB_FUZZ", "1"))
MEMORY_MIB = 400
SPECIAL = (
    b"\x00",
    b"\xff",
    b'"',
    b"{",
    b"[",
    b"\\",
    b"\n",
    b"\xed\xa0\x80",
    b"1e999",
    b"-9223372036854775809",
    b"null",
)


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    forget_peak()
    before = now_mib()
    yield
    assert peak_mib() - before < MEMORY_MIB


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A few bytes replaced, inserted, removed, repeated or moved, or the end cut off; always another text."""
    changed = bytearray(data)
    while bytes(changed) == data:
        for _ in range(dice.choice((1, 1, 2, 8))):
            place = dice.randrange(len(changed) + 1)
            stop = min(len(changed), place + dice.choice((1, 1, 4, 64)))
            kind = dice.randrange(6)
            if kind == 0 and place < len(changed):
                changed[place] = dice.randrange(256)
            elif kind == 1:
                changed[place:place] = dice.choice(SPECIAL)
            elif kind == 2:
                del changed[place:stop]
            elif kind == 3:
                changed[place:place] = changed[place:stop] * dice.choice((1, 50))
            elif kind == 4:
                changed[place:stop] = dice.randbytes(stop - place)
            elif dice.random() < 0.3:
                del changed[place:]
    return bytes(changed)


def outcome(path: Path, **sections: Any) -> Counter[str]:
    """What reading and preparing an input gives: rows by their error's code, or the name of the fatal error."""
    data = {
        "input": {"path": str(path), **sections.pop("input", {})},
        "model": {"path": "builtin:noop", "num_crops": 1},
        "output": {"path": "unused"},
        **sections,
    }
    counts: Counter[str] = Counter()
    try:
        _, source, preparer = open_job(JobSpec.from_dict(data))
        for table in iter_tables(source, 64):
            prepared = preparer(table.add_column(0, POSITION, pa.array(range(table.num_rows), pa.int64())))
            assert prepared.column(ROW_ID).null_count == 0
            for samples in prepared.column(SAMPLES).to_pylist():
                assert samples
                for sample in samples:
                    code = sample["error"]["code"] if sample["error"] else "ok"
                    assert code == "ok" or (ErrorCode(code) and sample["error"]["message"])
                    counts[code] += 1
        assert counts.total() >= source.num_rows
    except RayJobError as error:
        fatal = error
    else:
        return counts
    assert path.name in str(fatal)
    assert len(str(fatal)) < 3000
    assert fatal.exit_code == 2
    return Counter({type(fatal).__name__: 1})


def test_damaged_pictures_are_rows_of_their_own(tmp_path: Path) -> None:
    dice = random.Random(1)
    kinds: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: encoded(noise(24, 18), "JPEG", progressive=dice.random() < 0.5),
        "PNG": lambda: encoded(noise(24, 18).convert(dice.choice(("RGB", "P", "LA")))),
        "WEBP": lambda: encoded(noise(24, 18), "WEBP", lossless=dice.random() < 0.5),
        "GIF": lambda: encoded(noise(24, 18), "GIF", save_all=True, append_images=[noise(24, 18, seed=1)]),
        "BMP": lambda: encoded(noise(24, 18), "BMP"),
        "TIFF": lambda: encoded(noise(24, 18), "TIFF", compression=dice.choice((None, "tiff_lzw", "jpeg"))),
        "16 bits": lambda: encoded(noise(24, 18).convert("I;16"), dice.choice(("PNG", "TIFF", "PPM"))),
        "AVIF": lambda: encoded(noise(24, 18), "AVIF"),
        "JPEG 2000": lambda: encoded(noise(24, 18), "JPEG2000"),
        "ICO": lambda: encoded(noise(24, 24), "ICO"),
    }
    pictures = [mutated(make(), dice) for make in kinds.values() for _ in range(40 * TIMES)]
    good = encoded(noise(24, 18))
    rows = [data for damaged in pictures for data in (damaged, good)]
    ids = list(range(len(rows)))
    pq.write_table(pa.table({"id": ids, "image": rows, "question": ["what?"] * len(rows)}), tmp_path / "in.parquet")
    counts = outcome(tmp_path / "in.parquet", input={"id_column": "id"})
    assert counts.total() == len(rows) == 2 * 400 * TIMES
    assert counts["ok"] >= len(pictures), "the pictures between the damaged ones are as good as ever"
    assert {"ok", "image_truncated", "image_unreadable"} <= set(counts)


def test_damaged_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    dice = random.Random(2)
    body = {"model": "m", "messages": [{"role": "user", "content": "what?"}], "max_tokens": 5}
    batch = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body}
    seen: Counter[str] = Counter()
    num_lines = 0
    for number in range(20 * TIMES):
        lines = []
        for row in range(10):
            line = json.dumps({**batch, "custom_id": f"{number}-{row}"}).encode()
            lines += [line, mutated(line, dice).replace(b"\n", b" ")]
        num_lines += len(lines) // 2
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"\n".join(lines))
        counts = outcome(path)
        seen += counts
        assert counts["ok"] >= 10 or counts.total() == 1, counts
    assert num_lines >= 200
    assert {"ok", "row_malformed"} <= set(seen)


def test_damaged_parquet_files_are_named_or_read(tmp_path: Path) -> None:
    dice = random.Random(3)
    tables = []
    for options in ({}, {"compression": "zstd", "row_group_size": 4}, {"use_dictionary": False, "version": "1.0"}):
        stream = BytesIO()
        rows = [{"id": f"r{row}", "image": encoded(noise(8, 6)), "question": f"what is {row}?"} for row in range(12)]
        pq.write_table(pa.Table.from_pylist(rows), stream, **options)
        tables.append(stream.getvalue())
    seen: Counter[str] = Counter()
    for number in range(150 * TIMES):
        data = tables[number % len(tables)]
        if number % 2:
            place = len(data) - dice.randrange(1, 900)  # the footer, where most can go wrong
            data = data[:place] + mutated(data[place : place + 40], dice) + data[place + 40 :]
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(mutated(data, dice))
        counts = outcome(path, input={"id_column": "id"})
        seen += counts
    assert {"ok", "InputError"} <= set(seen)


# Any text, halves of surrogate pairs too: JSON can spell them.
TEXTS = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["huge", "\ud83d", "\ud800.png", "\0", "<|image_1|>", "{", "\u202e"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -(10**999), 1e-320, 1e308])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
KINDS = st.sampled_from(["text", "image_url", "image"]) | ANYTHING
PARTS = st.fixed_dictionaries({"type": KINDS}, optional={"text": ANYTHING, "image_url": ANYTHING, "image": ANYTHING})
CONTENTS = ANYTHING | st.lists(PARTS | ANYTHING, max_size=3)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system"]) | ANYTHING}, optional={"content": CONTENTS}
)
MESSAGES = st.lists(MESSAGE | ANYTHING, max_size=3) | ANYTHING
PARAMS = st.dictionaries(st.sampled_from(["max_new_tokens", "temperature", "top_k", "seed", "stop"]) | TEXTS, ANYTHING)


def texts(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """JSON of values, where the text `huge` stands for a number of more digits than Python writes."""
    return values.map(lambda value: json.dumps(value).replace('"huge"', "1" * 5000))


NESTED = st.integers(1, 200_000).map(lambda depth: "[" * depth) | st.integers(1, 3000).map(lambda n: "[" * n + "]" * n)
BROKEN = texts(MESSAGES).map(lambda text: text[: len(text) // 2]) | TEXTS.filter(
    lambda t: t.encode(errors="replace").decode() == t
)


@pytest.fixture(scope="module")
def preparers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Preparer]:
    """One that reads messages, one that reads questions, one that fills a template; all read parameters."""
    path = tmp_path_factory.mktemp("odd") / "rows.parquet"
    texts_only = {name: ["x"] for name in ("id", "messages", "params", "questions", "field", "image")}
    pq.write_table(pa.table(texts_only), path)
    prompts = {
        "messages": {"messages_column": "messages"},
        "questions": {"questions_column": "questions"},
        "field": {"template": "{field}", "column_markup": "special"},
    }
    found = {}
    for name, prompt in prompts.items():
        images = [] if name == "messages" else ["image"]
        spec = {
            "input": {"path": str(path), "id_column": "id", "image_columns": images},
            "prompt": prompt,
            "generation": {"overrides_column": "params"},
            "model": {"path": "builtin:noop", "num_crops": 1},
            "output": {"path": "unused"},
        }
        found[name] = open_job(JobSpec.from_dict(spec))[2]
    return found


def codes_of(preparer: Preparer, row: dict[str, Any]) -> set[str]:
    """How a row's samples end; what is written of them can be written."""
    whole = {"id": "r", "row_id": "r", "messages": "[]", "params": None, "questions": ["?"], "field": "?", "image": []}
    for headers_only in (False, True):
        prepared = preparer.row({**whole, **row}, headers_only=headers_only)
        assert prepared.samples
        samples = pa.array([prepared.samples], pa.list_(SAMPLE_TYPE)).to_pylist()[0]
    codes = {sample["error"]["code"] if sample["error"] else "ok" for sample in samples}
    assert "internal" not in codes, [sample["error"] for sample in samples]
    return codes


@settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts(MESSAGES) | NESTED | BROKEN, params=st.none() | texts(PARAMS) | texts(ANYTHING) | NESTED | BROKEN)
@example(text="5", params=None)
@example(text="true", params="null")
@example(text="[" * 100_000, params="[" * 100_000)
@example(text="[" + "1" * 5000 + "]", params='{"seed": ' + "1" * 5000 + "}")
@example(text='[{"role": "user", "content": "\\ud83d"}]', params='{"stop": "\\ud800"}')
@example(text='[{"role": "user", "content": [{"type": "image", "image": {"bytes": "\\ud800"}}]}]', params=None)
@example(text='[{"role": "user", "content": [{"type": "image_url", "image_url": "a\\ud800.png"}]}]', params=None)
def test_any_text_of_messages_and_parameters_is_a_rows_own(
    preparers: dict[str, Preparer], text: str, params: str | None
) -> None:
    assert codes_of(preparers["messages"], {"messages": text, "params": params})


@settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=MESSAGES | PARAMS | st.binary() | st.decimals() | st.datetimes() | st.uuids())
def test_any_value_of_a_column_is_a_rows_own(preparers: dict[str, Preparer], value: Any) -> None:
    for name, preparer in preparers.items():
        for column in (name, "params", "image"):
            row = {column: value} | ({"messages": value} if column != name == "messages" else {})
            assert codes_of(preparer, row)


@pytest.mark.parametrize("values", [*columns().values(), *far().values()], ids=lambda values: str(values.type)[:40])
def test_any_type_of_a_column_is_a_rows_own(preparers: dict[str, Preparer], values: pa.Array) -> None:
    for value in prompt_values(values):
        for name, preparer in preparers.items():
            for column in (name, "params", "image"):
                codes_of(preparer, {column: value, name: value})


def test_lines_of_any_values_are_rows(tmp_path: Path) -> None:
    @settings(max_examples=40 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(lines=st.lists(texts(st.dictionaries(TEXTS | st.sampled_from(["a", "messages"]), ANYTHING)), min_size=1))
    def check(lines: list[str]) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(["{}", *lines]))
        counts = outcome(path, prompt={"template": "?"})
        assert counts.total() == len(lines) + 1 or set(counts) == {"SpecError"}
        assert "internal" not in counts

    check()
