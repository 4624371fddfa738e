"""`close_at_limit`: each answer is whole within its tokens, whatever is chosen; a form that needs more is refused."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from ray_job.errors import RowError
from ray_job.spec import StructuredOutputs
from ray_job.structured.grammar import FormError, grammar_of
from tests.engine.test_schemas import SCHEMAS
from tests.structured.walks import allowed, model, walk

TEXT = {"type": "string"}
ITEM = {"type": "object", "properties": {"name": TEXT, "n": {"type": "integer"}}, "required": ["name", "n"]}
OPEN: dict[str, Any] = {  # whose answers may be of any length
    "records": {"type": "object", "properties": {"a": TEXT, "b": {"type": "array", "items": ITEM}}, "required": ["b"]},
    "any object": {"type": "object"},
    "repeated pattern": {"type": "array", "items": {"type": "string", "pattern": "^(ab|c{9}d)+$"}},
    "a tree": {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "t": TEXT}},
    "long": {"type": "string", "minLength": 60},
}


def needed(kind: str, **form: Any) -> int:
    """Tokens of the shortest answer, as the refusal of a single one says."""
    with pytest.raises(RowError) as caught:
        model(kind).forms.matcher(StructuredOutputs.model_validate({**form, "close_at_limit": True}), 1)
    found = re.fullmatch(
        r"structured_outputs: an answer of this form needs about (\d+) tokens, and max_new_tokens is 1; "
        "raise it, or ask for less",
        caught.value.message,
    )
    assert found is not None, caught.value.message
    return int(found[1])


@pytest.mark.parametrize("kind", ["demo", "bytes"])
@pytest.mark.parametrize("name", [*SCHEMAS, *OPEN])
def test_answers_end_within_their_tokens(name: str, kind: str) -> None:
    schema, rng = {**SCHEMAS, **OPEN}[name], random.Random(3)
    least = needed(kind, json=schema)
    for extra in (0, 1, 7, 30):
        ids, text = walk(kind, rng, least + extra, json=schema, close_at_limit=True)
        assert text is not None, model(kind).decode(ids)
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "form", [{"regex": "[a-z]{3,9} [0-9]+(abc){2}"}, {"regex": "[^x]*x"}, {"choice": ["a", "bcd efg", "b"]}]
)
def test_other_forms_do_as_well(form: dict[str, Any]) -> None:
    rng = random.Random(4)
    texts = [walk("demo", rng, most, close_at_limit=True, **form)[1] for most in (12, 15, 25) for _ in range(4)]
    assert None not in texts
    assert len(set(texts)) > 1, "what fits is chosen freely"


def test_far_from_the_limit_nothing_is_restricted() -> None:
    own = model("demo")
    schema = SCHEMAS["optional"]
    free = own.forms.matcher(StructuredOutputs.model_validate({"json": schema}), 10_000)
    closing = own.forms.matcher(StructuredOutputs.model_validate({"json": schema, "close_at_limit": True}), 10_000)
    rng = random.Random(5)
    for _ in range(12):
        ids = allowed(own.forms, free)
        assert allowed(own.forms, closing) == ids
        chosen = rng.choice([token_id for token_id in ids if token_id not in own.stop_ids])
        free.take(chosen)
        closing.take(chosen)


def test_a_grammar_has_no_known_end() -> None:
    with pytest.raises(FormError, match="close_at_limit: goes with json, regex and choice; leave it out"):
        grammar_of(StructuredOutputs(grammar='start: "a"', close_at_limit=True))
