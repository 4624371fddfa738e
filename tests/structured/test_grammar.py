"""What a form may say: every refusal names the place in it, and says what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ray_job.spec import StructuredOutputs
from ray_job.structured.grammar import FormError, _kept, grammar_of

TEXT = {"type": "string"}


def problems(**form: Any) -> list[str]:
    with pytest.raises(FormError) as caught:
        grammar_of(StructuredOutputs.model_validate(form))
    return caught.value.problems


def inside(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": TEXT}, "not cannot be guaranteed; say what is allowed instead"),
        ({"if": TEXT}, "if cannot be guaranteed; list the cases in anyOf"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems cannot be guaranteed; name the values in an object of "),
        ({"nullable": True}, "nullable cannot be guaranteed; write type: [..., 'null'] instead"),
        ({"x-guidance": {"lenient": True}}, "x-guidance cannot be guaranteed; how answers are written is not the "),
        ({"maxlength": 3}, "'maxlength' is no keyword that is known here; did you mean maxLength?"),
        ({"colour": 3}, "'colour' is no keyword that is known here; leave it out, or begin its name with x-"),
        ({"type": "text"}, "type 'text' does not exist; allowed: string, integer, number, boolean, null, array, "),
        ({"format": "colour"}, "format 'colour' is not known; known: date-time, time, date, duration, email, "),
        ({"$ref": "https://example.org/a"}, "$ref 'https://example.org/a' leads out of the schema, and nothing is "),
        ({"$ref": "#/$defs/a"}, "$ref '#/$defs/a' leads nowhere"),
        ({"minProperties": 2}, "minProperties above 1 cannot be guaranteed, as names might repeat; list the names "),
        ({"anyOf": TEXT}, "anyOf must be a list"),
        ({"properties": [TEXT]}, "properties must be an object with a schema for each name"),
        ("string", "a schema is an object, true or false, and this is 'string'"),
        # What only llguidance knows.
        ({"type": "string", "pattern": "(?=a)b"}, "regex parse error: (?=a)b error: look-around, including look-ahead"),
        ({"type": "string", "pattern": "(a)\\1"}, "regex parse error: (a)\\1 error: backreferences are not supported"),
        ({"oneOf": [TEXT, {"minLength": 3}]}, "oneOf whose cases may overlap cannot be guaranteed; use anyOf, or tell"),
        ({"type": "string", "minLength": "x"}, "Expected positive integer for 'minLength', got \"x\""),
        ({"allOf": [TEXT, {"minLength": -1}]}, "Expected positive integer for 'minLength', got -1"),
    ],
)
def test_what_a_schema_may_not_say_is_named_with_its_place(schema: Any, said: str) -> None:
    (problem,) = problems(json=inside(schema))
    place = "/allOf/1" if isinstance(schema, dict) and "allOf" in schema else ""
    assert problem.startswith(f"json: at /properties/a~1b/items{place}: {said}")


def test_every_problem_is_said_at_once() -> None:
    schema = {"properties": {"a": {"not": TEXT, "type": "strin"}, "b": [TEXT]}, "$defs": {"c": {"contains": TEXT}}}
    places = [problem.split(": ")[1] for problem in problems(json=schema)]
    assert places == ["at /properties/a", "at /properties/a", "at /properties/b", "at /$defs/c"]
    many = problems(json={"anyOf": [{"not": TEXT}] * 100})
    assert (len(many), many[-1]) == (65, "json: 36 more problems")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#"}, "at its top"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "at /properties/a"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "at /items"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}}, "at /$defs/a/allOf/0"),
    ],
)
def test_a_schema_that_must_hold_itself_never_ends(schema: Any, place: str) -> None:
    assert problems(json=schema) == [
        f"json: {place}: it must hold itself, so that no answer ever ends; make it optional, or allow null"
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"title": "t", "description": "d", "x-mine": {"not": 1}, "default": None, "examples": [1], "type": "string"},
        {"properties": {"not": TEXT, "maxlength": TEXT, "x-guidance": TEXT}},  # names are no keywords
        {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": TEXT}, "required": ["a"], "minProperties": 1},
    ],
)
def test_what_can_be_guaranteed_compiles(schema: Any) -> None:
    assert json.loads(grammar_of(StructuredOutputs.model_validate({"json": schema})))["grammars"]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"json": {"description": "x" * 200_000}}, "json: 200019 bytes; allowed: 131072. Leave out descriptions"),
        ({"json": inside({"enum": list(range(10_001))})}, "json: at /properties/a~1b/items: enum has 10001 values; "),
        ({"json": inside({"pattern": "a" * 4097})}, "json: at /properties/a~1b/items: pattern has 4097 characters; "),
        ({"regex": "a" * 4097}, "regex: 4097 characters; allowed: 4096"),
        ({"choice": [str(n) for n in range(10_001)]}, "choice: 10001 texts; allowed: 10000"),
        ({"choice": ["a" * 200_000]}, "choice: more than 131072 bytes of texts; shorten them"),
        ({"grammar": "#" * 200_000}, "grammar: 200000 bytes; allowed: 131072"),
        ({"regex": "["}, 'regex: at 1(8): invalid regex "[" (in regex): regex parse error: [ error: unclosed charact'),
        ({"regex": r"\bword\b"}, "regex: at 1(8): "),
        (
            {"grammar": 'root ::= "a"'},
            "grammar: 1(7): Expected token '_', found '=' (at \"=\" ('=')); this looks like GB",
        ),
        ({"grammar": "start: a"}, 'grammar: at 1(8): unknown name: "a"'),
        (
            {"grammar": "start: <|end|>"},
            "grammar: names tokens, such as <|end|> or <[5]>, which an answer's text never",
        ),
        ({"grammar": "start: <[5]>"}, "grammar: names tokens"),
        (
            {"grammar": 'start: a\na[stop="x"]: /.*/'},
            "grammar: the option stop cuts answers in its own way; leave it out",
        ),
        ({"grammar": "start: a\na[max_tokens=3]: /.*/"}, "grammar: the option max_tokens cuts answers"),
        ({"grammar": '%llguidance {"no_forcing": true}\nstart: "a"'}, "grammar: %llguidance changes how answers are "),
        ({"grammar": 'start: %json {"x-guidance": {"lenient": true}}'}, "grammar: x-guidance changes how answers are "),
        (
            {"grammar": 'start: %json {"not": {}}'},
            "grammar: at 1(8): failed to compile JSON schema: Unimplemented keys",
        ),
    ],
)
def test_forms_are_bounded_and_refusals_say_what_is_wrong(form: dict[str, Any], said: str) -> None:
    (problem,) = problems(**form)
    assert problem.startswith(said)


def test_options_of_a_grammar_may_stand_in_its_texts() -> None:
    assert grammar_of(StructuredOutputs(grammar='start: "[stop=" /[stop=]/ // a[stop=""]'))


def test_one_schema_is_compiled_once_right_or_wrong() -> None:
    _kept.cache_clear()
    for _ in range(100):
        grammar_of(StructuredOutputs.model_validate({"json": inside(TEXT)}))
        problems(json=inside({"not": TEXT}))
    assert (_kept.cache_info().misses, _kept.cache_info().hits) == (2, 198)
