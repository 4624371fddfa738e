"""JSON in rows: what is read, and what is refused by the row's error rather than by Python's."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.prompts.json_text import MAX_DEPTH, MAX_DIGITS, has_half_pair, parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.booleans())
def test_what_json_can_write_is_read_back(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value"),
        ("[", "not JSON: Expecting value"),
        ("NaN", "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ("1e999", "1e999 is beyond the largest 64-bit number"),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} levels deep at character {MAX_DEPTH + 1}"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested more than"),
        ("1" * 5000, f"has 5000 digits, more than {MAX_DIGITS}"),
        ('"\\ud83d"', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ('"\ud83d"', "half of a surrogate pair"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
    ],
)
def test_what_no_later_code_could_take_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_json(text, ErrorCode.PARAMS_INVALID, Stage.READ)
    assert message in caught.value.message
    assert len(caught.value.message) < 200
    assert (caught.value.code, caught.value.stage) == (ErrorCode.PARAMS_INVALID, Stage.READ)


def test_the_limits_themselves_are_allowed() -> None:
    assert parse_json("1" * MAX_DIGITS) == int("1" * MAX_DIGITS)
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json('["' + "[{" * 1000 + '\\\\\\""]') == ["[{" * 1000 + '\\"'], "brackets in a text are no depth"
    assert parse_json('"\\ud83d\\ude00"') == "😀"
    assert parse_json('"\\\\ud800"') == "\\ud800"
    assert math.isclose(parse_json("1e308"), 1e308)


def test_a_key_that_comes_twice_has_its_last_value() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}


def test_half_a_pair_may_pass_for_who_looks_at_it_later() -> None:
    assert parse_json('["\\ud83d"]', allow_surrogates=True) == ["\ud83d"]
    assert has_half_pair("\ud83d")
    assert not has_half_pair("😀 é")


def test_looking_for_depth_takes_time_in_proportion_to_the_text() -> None:
    """With the square of these two million quotes, the test's own time limit would end it."""
    with pytest.raises(RowError, match="Unterminated string"):
        parse_json("[" + "[]," * MAX_DEPTH + '"' + '\\"' * 2_000_000)
