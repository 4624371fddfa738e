"""Preparing and answering rows without Ray: every kind of bad row ends as its own error, the others are untouched."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job.arrow.values import PromptRows, prompt_rows
from ray_job.inputs.source import iter_tables
from ray_job.rows import PICTURES, POSITION, PREPARE_S, SAMPLES, WORKER, output_schema, result_schema
from ray_job.spec import JobSpec
from ray_job.stages.generate import GenerateActor
from ray_job.stages.open_job import open_job


def png(width: int = 40, height: int = 30) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


GOOD = png()
BAD_ROWS = {
    "image_missing": {"image": None},
    "image_empty": {"image": {"bytes": b"", "path": None}},
    "image_truncated": {"image": {"bytes": GOOD[:300], "path": None}},
    "image_unreadable": {"image": {"bytes": b"no picture", "path": None}},
    "image_too_large": {"image": {"bytes": png(300, 300), "path": None}},
    "image_too_narrow": {"image": {"bytes": png(1, 600), "path": None}},
    "image_forbidden": {"image": {"bytes": None, "path": "../secret.png"}},
    "prompt_missing": {"question": None},
    "prompt_too_long": {"question": "so " * 400},
    "prompt_tags": {"question": "<|image_2|> what?"},
    "params_invalid": {"params": json.dumps({"max_new_token": 3})},
}


@pytest.fixture
def spec(tmp_path: Path, tiny_folder: Path) -> JobSpec:
    rows: list[dict[str, Any]] = [{"id": "good-1"}]
    rows += [{"id": code, **values} for code, values in BAD_ROWS.items()]
    rows += [{"id": "good-2", "params": json.dumps({"max_new_tokens": 2})}]
    whole = {"image": {"bytes": GOOD, "path": None}, "question": "what is it?", "params": None, "label": "x"}
    (tmp_path / "in").mkdir()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"id": pa.string(), "image": image, "question": pa.string(), "params": pa.string(), "label": pa.string()}
    table = pa.Table.from_pylist([{**whole, **row} for row in rows], pa.schema(list(types.items())))
    pq.write_table(table, tmp_path / "in" / "rows.parquet")
    return JobSpec.from_dict(
        {
            "input": {"path": str(tmp_path / "in"), "id_column": "id"},
            "prompt": {"template": "{question}", "column_markup": "tags"},
            "model": {"path": str(tiny_folder), "num_crops": 1},
            "generation": {"max_new_tokens": 5, "overrides_column": "params"},
            "limits": {"max_pixels": 80_000, "max_prompt_tokens": 800},
            "output": {"path": str(tmp_path / "out")},
        }
    )


def prepared(spec: JobSpec) -> tuple[JobSpec, pa.Table, pa.Schema]:
    spec, source, preparer = open_job(spec)
    (rows,) = iter_tables(source)
    rows = rows.add_column(0, POSITION, pa.array(range(rows.num_rows)))
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    return spec, preparer(rows), schema


def test_every_bad_row_becomes_its_own_error_and_the_good_ones_are_answered(spec: JobSpec) -> None:
    spec, table, schema = prepared(spec)
    results = GenerateActor(spec, schema).generate(table)
    assert results.schema == result_schema(schema)
    rows = {row["row_id"]: row for row in results.to_pylist()}
    assert list(rows) == ["good-1", *BAD_ROWS, "good-2"]
    for code in BAD_ROWS:
        assert (rows[code]["status"], rows[code]["generated_text"]) == ("error", None)
        assert rows[code]["error"]["code"] == code
        assert rows[code]["error"]["message"]
        assert rows[code]["label"] == "x"
    assert (rows["good-1"]["status"], rows["good-1"]["usage"]["completion_tokens"]) == ("ok", 5)
    assert (rows["good-2"]["finish_reason"], rows["good-2"]["usage"]["completion_tokens"]) == ("length", 2)
    assert rows["good-1"]["generated_text"].startswith(rows["good-2"]["generated_text"])


def test_the_asynchronous_call_gives_the_same_rows(spec: JobSpec) -> None:
    spec, table, schema = prepared(spec)
    actor = GenerateActor(spec, schema)

    async def call() -> list[pa.Table]:
        return [part async for part in actor(table)]

    (streamed,) = asyncio.run(call())
    expected = actor.generate(table)
    untimed = [name for name in expected.column_names if name not in ("latency_ms", WORKER)]
    assert streamed.select(untimed).equals(expected.select(untimed))


def test_headers_alone_tell_the_same_tokens(spec: JobSpec) -> None:
    spec, source, preparer = open_job(spec)
    (rows,) = iter_tables(source)
    for row in preparer.values(rows):
        full, header = preparer.row(row), preparer.row(row, headers_only=True)
        assert [sample["input_ids"] for sample in full.samples] == [s["input_ids"] for s in header.samples]
        assert [sample["error"] for sample in full.samples] == [s["error"] for s in header.samples]


def test_dates_that_python_cannot_hold_pass_through_and_into_prompts(spec: JobSpec, tmp_path: Path) -> None:
    years = pa.array([0, 10**16], pa.timestamp("ms"))  # 1970, and a year far beyond 9999
    pq.write_table(pa.table({"id": ["a", "b"], "when": years}), tmp_path / "in" / "rows.parquet")
    data = spec.model_dump(mode="json")
    data["prompt"] = {"template": "what was on {when}?"}
    data["generation"] = {"max_new_tokens": 2}
    spec, table, schema = prepared(JobSpec.from_dict(data))
    results = GenerateActor(spec, schema).generate(table)
    assert results.column("status").to_pylist() == ["ok", "ok"]
    assert results.column("when").cast(pa.int64()).to_pylist() == [0, 10**16]


def test_questions_of_a_row_share_its_pictures_and_come_out_as_rows(spec: JobSpec) -> None:
    data = spec.model_dump(mode="json")
    data["prompt"] = {"questions": ["what?", "where is it?"]}
    spec, table, schema = prepared(JobSpec.from_dict(data))
    first = table.slice(0, 1)
    assert (len(first.column(SAMPLES)[0]), len(first.column(PICTURES)[0])) == (2, 1)
    results = GenerateActor(spec, schema).generate(first).to_pylist()
    assert [(row["row_id"], row["question_index"]) for row in results] == [("good-1", 0), ("good-1", 1)]


def test_sampling_seeds_differ_by_row_and_follow_the_jobs_seed(spec: JobSpec) -> None:
    def seeds(seed: int) -> list[int]:
        data = spec.model_dump(mode="json")
        data["generation"] |= {"temperature": 1.0, "seed": seed, "overrides_column": None}
        _, table, _ = prepared(JobSpec.from_dict(data))
        samples = [row[0] for row in table.column(SAMPLES).to_pylist() if row[0]["params"]]
        return [json.loads(sample["params"])["seed"] for sample in samples]

    assert len(set(seeds(1))) == len(seeds(1)) > 1
    assert seeds(1) == seeds(1)
    assert set(seeds(1)).isdisjoint(seeds(2))


def params_of(spec: JobSpec, tmp_path: Path, values: list[Any], **generation: Any) -> list[dict[str, Any] | str]:
    """The parameters of rows with these overrides (not those of the job's that are defaults), or their error."""
    rows = {"id": [f"r{n}" for n in range(len(values))], "params": values, "question": ["what?"] * len(values)}
    pq.write_table(pa.table(rows), tmp_path / "in" / "rows.parquet")
    data = spec.model_dump(mode="json")
    data["input"]["image_columns"] = []
    data["generation"] |= {"max_new_tokens": 128} | generation
    _, table, _ = prepared(JobSpec.from_dict(data))
    samples = [row[0] for row in table.column(SAMPLES).to_pylist()]
    return [
        json.loads(sample["params"]) if sample["error"] is None else str(sample["error"]["message"])
        for sample in samples
    ]


NO_OVERRIDES = ["", "  ", "null", " null\n", "{}", None, '{"max_tokens": null}']


def test_an_empty_override_overrides_nothing(spec: JobSpec, tmp_path: Path) -> None:
    assert params_of(spec, tmp_path, NO_OVERRIDES) == [{}] * len(NO_OVERRIDES)
    structs = [None, {"max_tokens": None, "seed": None}]
    assert params_of(spec, tmp_path, structs) == [{}, {}]


@pytest.mark.parametrize(
    ("override", "result"),
    [
        ('{"max_tokens": 4}', {"max_new_tokens": 4}),
        ('{"max_completion_tokens": 4, "max_tokens": 4.0}', {"max_new_tokens": 4}),
        ('{"top_k": -1, "temperature": "0.7", "seed": 3}', {"temperature": 0.7, "seed": 3}),
        ('{"temperature": 1, "top_p": 0}', {"temperature": 1.0, "top_p": 0.0}),
        ('{"max_new_tokens": true}', "column 'params': max_new_tokens: got True; allowed: a number"),
        ('{"max_tokens": 4, "max_new_tokens": 5}', "column 'params': max_new_tokens and max_tokens differ (5 and 4)"),
        ('{"max_new_token": 4}', "column 'params': max_new_token: got 4; unknown key; did you mean 'max_new_tokens'?"),
        ('{"stop": ["a", ""]}', "column 'params': stop: an empty string"),
        ('{"temperature": -1, "top_k": -2}', "allowed: greater than or equal to 0; top_k: got -2; allowed:"),
        ("[]", "column 'params': expected an object, got list"),
        ("true", "column 'params': expected an object, got bool"),
    ],
)
def test_an_override_is_read_or_refused_by_name(spec: JobSpec, tmp_path: Path, override: str, result: Any) -> None:
    (found,) = params_of(spec, tmp_path, [override])
    if isinstance(result, str):
        assert isinstance(found, str)
        assert result in found
    else:
        assert found == result


@pytest.mark.parametrize("job_seed", [0, 42])
def test_a_rows_own_seed_is_used_as_it_is(spec: JobSpec, tmp_path: Path, job_seed: int) -> None:
    own = [0, 7, 42, 2**63 - 1]
    overrides = [json.dumps({"seed": seed}) for seed in own] * 2
    found = params_of(spec, tmp_path, [*overrides, '{"top_p": 0.9}', None], temperature=1.0, seed=job_seed)
    seeds = [params.get("seed", 0) for params in found if isinstance(params, dict)]
    assert seeds[:8] == own * 2
    assert len({job_seed, *seeds[8:]}) == 3, "without one, the job's seed is mixed with the row's id"


def test_rows_of_a_large_block_are_made_one_at_a_time_and_are_the_same(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, _ = prepared(spec)
    monkeypatch.setattr("ray_job.stages.prepare._MANY_BYTES", 0)
    spec, source, preparer = open_job(spec)
    (rows,) = iter_tables(source)
    values = preparer.values(rows)
    assert isinstance(values, PromptRows)
    assert list(values) == prompt_rows(rows.select(list(values[0])))
    assert list(values[3:5]) == [values[3], values[4]]
    assert values[-1] == values[len(values) - 1]
    with pytest.raises(IndexError):
        values[len(values)]
    _, found, _ = prepared(spec)
    untimed = [name for name in expected.column_names if name != PREPARE_S]
    assert found.select(untimed).equals(expected.select(untimed))
