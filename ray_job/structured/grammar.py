"""From a form to the grammar that llguidance runs, bounded in size before anything is compiled.

The grammar is text: it travels and is compared as such. JSON is written in one way but for a space that may follow
each colon and comma, its properties in the schema's order. Nothing here needs a tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import llguidance

from ray_job.spec import StructuredOutputs
from ray_job.structured.schema import at, optional_parts, schema_problems, subschemas

MAX_BYTES = 2**17  # of a schema as JSON, and of a grammar
MAX_CHOICES = 10_000  # of `choice`, and of each enum
MAX_PATTERN_CHARS = 4096  # of a regular expression
_FEW = 64  # problems are no fewer for being shown in full
_JSON_STYLE: Any = {"whitespace_flexible": False, "key_separator": ": ?", "item_separator": ", ?"}
_NO_TOKENIZER = "no tokenizer"  # llguidance says so of tokens that a grammar names
_STRINGS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?![/*])(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*')
_QUOTED = re.compile(r"\d+ \|")  # a line of the grammar that a message shows
_OPTIONS = re.compile(r"\[[^\]]*\b(stop|max_tokens|temperature)\b")


class FormError(ValueError):
    """A form that no answer can be held to. `problems` holds one line per mistake, beginning with the field's name."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


def limits() -> llguidance.LLParserLimits:
    """What compiling and running a grammar may cost: a form beyond it fails with its own row."""
    return llguidance.LLParserLimits(initial_lexer_fuel=200_000, verbose_errors=False)


def grammar_of(form: StructuredOutputs) -> str:
    """The form as llguidance reads it.

    Raises:
        FormError: it is too large, or says what cannot be guaranteed: every problem with its place.
    """
    if form.close_at_limit and form.grammar is not None:
        raise FormError(["close_at_limit: goes with json, regex and choice; leave it out"])
    grammar, problems = _kept(form_key(form))
    if problems:
        raise FormError(list(problems))
    return grammar


def form_key(form: StructuredOutputs) -> str:
    """Equal for forms that hold answers to the same."""
    return form.model_dump_json(exclude_defaults=True, exclude={"close_at_limit"})


@lru_cache(maxsize=64)  # many rows have the same, right or wrong
def _kept(key: str) -> tuple[str, tuple[str, ...]]:
    """The grammar, and what is wrong with the form."""
    try:
        return _grammar(json.loads(key)), ()
    except FormError as error:
        return "", tuple(error.problems)


def _grammar(form: dict[str, Any]) -> str:
    if "json" in form:
        return _json_grammar({"type": "object"} if form["json"] is True else form["json"])
    if "regex" in form:
        return _regex_grammar(form["regex"])
    if "choice" in form:
        return _choice_grammar(form["choice"])
    return _lark_grammar(form["grammar"])


def _json_grammar(schema: Mapping[str, Any]) -> str:
    _check(_size_problems(schema))
    _check(schema_problems(schema))
    whole = _with_style(schema)
    if (message := _refusal(whole)) is not None:
        _check([f"{at(_place(schema, message))}: {message}"])
    return whole


def _check(problems: list[str]) -> None:
    if problems:
        more = [f"{len(problems) - _FEW} more problems"] if len(problems) > _FEW else []
        raise FormError([f"json: {problem}" for problem in (*problems[:_FEW], *more)])


def _size_problems(schema: Mapping[str, Any]) -> list[str]:
    size = len(json.dumps(schema, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_BYTES:
        return [f"{size} bytes; allowed: {MAX_BYTES}. Leave out descriptions and examples, or ask less at once"]
    problems = []
    for place, part in subschemas(schema):
        if not isinstance(part, Mapping):
            continue
        values, pattern = part.get("enum"), part.get("pattern")
        if isinstance(values, list) and len(values) > MAX_CHOICES:
            problems.append(f"{at(place)}: enum has {len(values)} values; allowed: {MAX_CHOICES}")
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
            problems.append(f"{at(place)}: pattern has {len(pattern)} characters; allowed: {MAX_PATTERN_CHARS}")
    return problems


def _with_style(schema: Mapping[str, Any]) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_JSON_STYLE)


def _place(schema: Mapping[str, Any], message: str) -> str:
    """The innermost part that is refused in the same words when it stands alone."""
    found = ""
    for place, part in subschemas(schema):
        if place.startswith(found) and isinstance(part, Mapping):
            found = place if _refusal(_alone(part, schema)) == message else found
    return found


def optional_grammars(form: StructuredOutputs) -> Iterator[str]:
    """Grammars of what an answer may hold and need not, each part alone; none of forms other than a schema."""
    if isinstance(schema := form.json_schema, Mapping):
        yield from (_alone(part, schema) for part in optional_parts(schema))


def _alone(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    shared = {key: schema[key] for key in ("$defs", "definitions", "$schema") if key in schema}
    return _with_style({**shared, **part})


def _refusal(grammar: str) -> str | None:
    """Why llguidance does not run a grammar, in one line; what it warns of is none of its promises either."""
    _, said = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
    if not said:
        return None
    if said[0].startswith(_NO_TOKENIZER):
        return "names tokens, such as <|end|> or <[5]>, which an answer's text never holds; write texts alone"
    if said[0].startswith("oneOf constraints"):
        return "oneOf whose cases may overlap cannot be guaranteed; use anyOf, or tell the cases apart by a const"
    lines = (line.strip() for line in said[0].splitlines())
    return " ".join(line for line in lines if line.strip("^") and not _QUOTED.match(line))


def _regex_grammar(regex: str) -> str:
    if len(regex) > MAX_PATTERN_CHARS:
        raise FormError([f"regex: {len(regex)} characters; allowed: {MAX_PATTERN_CHARS}"])
    return _checked(llguidance.LLMatcher.grammar_from_regex(regex), "regex")


def _choice_grammar(choices: list[str]) -> str:
    if len(choices) > MAX_CHOICES:
        raise FormError([f"choice: {len(choices)} texts; allowed: {MAX_CHOICES}"])
    # One terminal, since a rule may not branch so often.
    texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in choices)
    grammar = f"start: CHOICE\nCHOICE: {texts}"
    if len(grammar.encode(errors="replace")) > MAX_BYTES:
        raise FormError([f"choice: more than {MAX_BYTES} bytes of texts; shorten them"])
    return _checked(_named(grammar), "choice")


def _lark_grammar(text: str) -> str:
    if (size := len(text.encode(errors="replace"))) > MAX_BYTES:
        raise FormError([f"grammar: {size} bytes; allowed: {MAX_BYTES}"])
    rules = _STRINGS.sub(" ", text)
    if (option := _OPTIONS.search(rules)) is not None:
        raise FormError([f"grammar: the option {option[1]} cuts answers in its own way; leave it out"])
    for word in ("%llguidance", "x-guidance"):
        if word in text:
            raise FormError([f"grammar: {word} changes how answers are written; leave it out"])
    try:
        return _checked(_named(text), "grammar")
    except FormError as error:
        hint = "; this looks like GBNF: Lark has `start: …` for `root ::= …`" if "::=" in text else ""
        raise FormError([f"{error}{hint}"]) from None


def _named(lark: str) -> str:
    return json.dumps({"grammars": [{"name": "form", "lark_grammar": lark}]}, ensure_ascii=False)


def _checked(grammar: str, field: str) -> str:
    if (message := _refusal(grammar)) is not None:
        raise FormError([f"{field}: {message}"])
    return grammar
