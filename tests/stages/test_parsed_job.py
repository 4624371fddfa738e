"""A whole job with a schema, by the demo's model: every value in `parsed` is the answer's, and its type holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import ray_job
from ray_job.output.manifest import Manifest
from ray_job.output.verify import verify
from ray_job.spec import JobSpec
from ray_job.storage.places import locate
from ray_job.structured.arrow_types import arrow_type
from tests.jobs_here import run_here

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "grün", None]},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
        "sizes": {"type": "array", "items": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 4},
                  "maxItems": 2},
        "place": {
            "type": "object",
            "properties": {"side": {"enum": ["left", "right"]}, "sure": {"type": "boolean"}},
            "required": ["sure"],
            "additionalProperties": False,
        },
        "either": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"enum": ["none"]}]},
    },
    "required": ["count", "place"],
    "additionalProperties": False,
}  # fmt: skip
NUM_ROWS = 24
OWN: list[dict[str, Any] | None] = [
    *[None] * 4,
    {"max_new_tokens": 3},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"json": {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"],
                                     "additionalProperties": False}}},
    {"structured_outputs": {"regex": "("}},
]  # fmt: skip
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    own = [None if OWN[row % 8] is None else json.dumps(OWN[row % 8]) for row in range(NUM_ROWS)]
    table = pa.table({"question": [f"what is {row}?" for row in range(NUM_ROWS)], "own": own, "row": range(NUM_ROWS)})
    pq.write_table(table, folder / "rows.parquet")
    form = {"json": SCHEMA}
    spec = {
        "input": {"path": str(folder / "rows.parquet"), "image_columns": []},
        "model": {"path": str(Path(ray_job.__file__).parent / "demo" / "model"), "device": "cpu"},
        "generation": {
            "max_new_tokens": 90,
            "temperature": 1.5,
            "seed": 1,
            "overrides_column": "own",
            "structured_outputs": form,
        },
        "batching": {"max_batch_rows": 8},
        "output": {"path": str(folder / "out")},
    }
    run_here(JobSpec.from_dict(spec))
    return folder / "out"


def rows(out: Path) -> dict[int, dict[str, Any]]:
    return {row["row"]: row for row in ds.dataset(out).to_table().to_pylist()}


def by_own(out: Path, *kinds: int) -> list[dict[str, Any]]:
    return [row for number, row in rows(out).items() if number % 8 in kinds]


def test_each_answer_conforms_and_is_its_value(out: Path) -> None:
    answers = by_own(out, 0, 1, 2, 3)
    assert len(answers) == 12
    for row in answers:
        said = json.loads(row["generated_text"])
        jsonschema.validate(said, SCHEMA)
        place = {"side": None, **said["place"]}
        either = json.dumps(said["either"]) if "either" in said else None
        nothing = {"colour": None, "sizes": None}
        assert row["parsed"] == {**nothing, **said, "place": place, "either": either}
        assert row["finish_reason"] == "stop"
    assert len({row["generated_text"] for row in answers}) > 6


def test_what_is_no_value_of_the_type_is_null(out: Path) -> None:
    cut, chosen, other, refused = (by_own(out, kind) for kind in (4, 5, 6, 7))
    assert {row["finish_reason"] for row in cut} == {"length"}
    assert {row["generated_text"] for row in chosen} <= {"yes", "no"}
    assert {json.loads(row["generated_text"])["n"] for row in other} == {1}
    assert {row["error"]["code"] for row in refused} == {"params_invalid"}
    assert [row["parsed"] for row in (*cut, *chosen, *other, *refused)] == [None] * 12


def test_the_parts_hold_the_schemas_type_and_add_up(out: Path) -> None:
    types = {pq.read_schema(part).field("parsed").type for part in out.glob("*/part-*.parquet")}
    assert types == {arrow_type(SCHEMA)}
    found = verify(locate(str(out)))
    assert found.is_good, found.table()
    manifest = Manifest.of_output(locate(str(out)))
    assert manifest.totals.unparsed == {"length": 3, "stop": 6}
