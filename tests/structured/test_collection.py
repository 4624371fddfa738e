"""A collection of schemas that others wrote: those that compile are held to, the others are refused with a place.

cfn-lint ships one for each kind of resource of AWS; answers are walked at random and cut where they grow long.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ray_job.errors import RowError
from ray_job.spec import StructuredOutputs
from ray_job.structured.grammar import FormError, grammar_of
from ray_job.structured.schema import _ANNOTATIONS, _GUARANTEED, _REFUSED, subschemas
from tests.structured.walks import walk

FOLDER = Path(str(files("cfnlint"))) / "data" / "schemas"
NUM_WALKED = 120
KNOWN = {*_GUARANTEED, *_ANNOTATIONS, *_REFUSED}


def schemas() -> list[tuple[str, dict[str, Any]]]:
    found = [(str(path.relative_to(FOLDER)), json.loads(path.read_text())) for path in sorted(FOLDER.rglob("*.json"))]
    return [(name, without_own_words(schema)) for name, schema in found if isinstance(schema, dict)]


def without_own_words(schema: Any) -> Any:
    """A schema without the keywords of cfn-lint and AWS, which say nothing of values."""
    for _, part in list(subschemas(schema)):
        if isinstance(part, dict):
            for word in [word for word in part if word not in KNOWN]:
                del part[word]
    return schema


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_collection_of_schemas_is_held_to_or_refused_with_a_place() -> None:
    counts: Counter[str] = Counter()
    compiled, refused = [], []
    for name, schema in schemas():
        try:
            form = StructuredOutputs.model_validate({"json": schema, "close_at_limit": True})
            grammar_of(form)
        except FormError as error:
            refused += [(name, problem) for problem in error.problems]
            counts["refused"] += 1
        else:
            counts["compiled"] += 1
            compiled.append((name, schema))
    assert [entry for entry in refused if not re.match("json: (at |[0-9]+ )", entry[1])] == []
    rng = random.Random(0)
    for name, schema in rng.sample(compiled, min(NUM_WALKED, len(compiled))):
        try:
            text = walk("demo", rng, 250, json=schema)[1]
        except RowError:
            counts["too large"] += 1
            continue
        if text is None:
            counts["cut"] += 1
            continue
        counts["valid"] += 1
        problems = list(jsonschema.Draft7Validator(schema).iter_errors(json.loads(text)))
        assert problems == [], (name, text, problems)
    print(dict(counts))
    assert counts["compiled"] > 500, "most of the others have uniqueItems or formats of AWS"
    assert counts["valid"] > NUM_WALKED / 4
