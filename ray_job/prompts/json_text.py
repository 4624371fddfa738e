"""JSON that a row holds as text, read by one set of rules wherever it stands: messages, parameters, JSON lines.

What Python's own reader lets through or dies of is the row's error here: NaN and Infinity (in the lines of a file they
are numbers), numbers too large to hold, half of a surrogate pair, and arrays or objects nested deeper than MAX_DEPTH,
which no later code need fear. A key that an object has twice has the last of its values, as in most other readers.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from ray_job.errors import ErrorCode, RowError, Stage

MAX_DEPTH = 100
MAX_DIGITS = 1000  # of a whole number; Python itself neither reads nor writes more than 4300
_SHOWN_CHARS = 30
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKET_OR_QUOTE = re.compile(r'[\[\]{}"]')
_REST_OF_TEXT = re.compile(r'(?:[^"\\]++|\\.)*+"', re.DOTALL)


def parse_json(
    text: str | bytes,
    code: ErrorCode = ErrorCode.ROW_MALFORMED,
    stage: Stage = Stage.PREPARE,
    *,
    allow_surrogates: bool = False,
    allow_nan: bool = False,
) -> Any:
    """The value a text holds.

    Args:
        text: the JSON; bytes are UTF-8.
        code: of the error.
        stage: of the error.
        allow_surrogates: half of a surrogate pair is no error here; whoever uses a text of it must then check that.
        allow_nan: NaN and Infinity are numbers, as Python's `json` and others write them.

    Raises:
        RowError: it is not UTF-8, not JSON, or holds what the module's docstring refuses.
    """
    try:
        decoder = _LENIENT_DECODER if allow_nan else _DECODER
        value = _parsed(text.decode("utf-8") if isinstance(text, bytes) else text, decoder)
        if not allow_surrogates:
            _check_pairs(text, value)
    except UnicodeDecodeError as error:
        raise RowError(code, f"not UTF-8 at byte {error.start}", stage) from None
    except UnicodeEncodeError:
        raise RowError(code, "not JSON of characters: it holds half of a surrogate pair", stage) from None
    except (ValueError, RecursionError) as error:
        raise RowError(code, f"not JSON: {error}", stage) from None
    return value


def has_half_pair(text: str) -> bool:
    """Whether half of a surrogate pair is in it: it is then no text that a file, a tokenizer or Arrow can take."""
    return not text.isascii() and text.encode(errors="replace").decode() != text


def _parsed(text: str, decoder: json.JSONDecoder) -> Any:
    # Counting brackets is quick, and few texts have so many that their depth must be looked at.
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(text)
    return decoder.decode(text)


def _check_depth(text: str) -> None:
    depth = place = 0
    while (found := _BRACKET_OR_QUOTE.search(text, place)) is not None:
        place = found.end()
        if found[0] == '"':
            rest = _REST_OF_TEXT.match(text, place)
            if rest is None:  # it never ends, which parsing will say
                return
            place = rest.end()
            continue
        depth += 1 if found[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep at character {place}")


def _check_pairs(text: str | bytes, value: Any) -> None:
    if isinstance(text, str):
        text = text.encode()
    if b"\\u" in text and _ESCAPED_SURROGATE.search(text.decode()):
        json.dumps(value, ensure_ascii=False).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:_SHOWN_CHARS]}… has {len(text)} digits, more than {MAX_DIGITS}")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:_SHOWN_CHARS]} is beyond the largest 64-bit number")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole_number, parse_float=_number)
_LENIENT_DECODER = json.JSONDecoder(parse_constant=float, parse_int=_whole_number, parse_float=_number)
