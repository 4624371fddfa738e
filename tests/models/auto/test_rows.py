"""Rows of a job prepared for a library model, and planned: as the library's processor reads the same conversation."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from ray_job.errors import ModelError, SpecError
from ray_job.inputs.source import iter_tables
from ray_job.models.auto.processor import LibraryProcessor
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.output.fingerprint import file_digests, fingerprint_fields
from ray_job.plan import plan_job
from ray_job.rows import PICTURES, POSITION, SAMPLES, arrays_of
from ray_job.spec import JobSpec, ModelSpec
from ray_job.stages.open_job import open_job
from tests.models.auto.conversations import as_library, ours, picture, told, user, whole_call

_QUESTION = "what is the thing?"


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def job(folder: Path, tmp_path: Path, rows: list[dict[str, Any]], **sections: dict[str, Any]) -> JobSpec:
    """A job over pictures 0 and 1 as files and rows of JSON lines."""
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(picture(number)))
    (tmp_path / "narrow.png").write_bytes(png(Image.new("RGB", (1, 600))))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": at, **row}) + "\n" for at, row in enumerate(rows)))
    model = {"path": str(folder), **sections.pop("model", {})}
    source = {"path": str(tmp_path / "rows.jsonl"), "id_column": "id"}
    return JobSpec.from_dict({"input": source, "output": {"path": str(tmp_path / "out")}, "model": model, **sections})


def samples(spec: JobSpec) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of each row its only sample and its pictures."""
    spec, source, preparer = open_job(spec)
    (rows,) = iter_tables(source)
    table = preparer(rows.add_column(0, POSITION, pa.array(range(rows.num_rows))))
    return [
        (found[0], shown) for found, shown in zip(table[SAMPLES].to_pylist(), table[PICTURES].to_pylist(), strict=True)
    ]


def test_rows_of_prompts_and_pictures(family: Path, tmp_path: Path) -> None:
    rows = [{"question": _QUESTION, "image": "0.png"}, {"question": "and <|image_1|>?", "image": "1.png"}]
    spec = job(family, tmp_path, [*rows, {"question": "x", "image": "narrow.png"}])
    (first, shown), (second, _), (narrow, _) = samples(spec)
    expected = whole_call(family, [user(1, _QUESTION)], [picture(0)])["input_ids"][0].tolist()
    assert as_library(family, first["input_ids"]) == expected
    arrays = arrays_of(shown[0]["arrays"])
    for name, array in ours(family).prepare(picture(0)).arrays.items():
        assert arrays[name].dtype == array.dtype
        assert (arrays[name] == array).all()
    assert narrow["error"]["code"] == "image_too_narrow"
    # A tag in a column is text, unless the job says otherwise: the picture stands in front.
    expected = whole_call(family, [user(1, "and <|image_1|>?")], [picture(1)])["input_ids"][0].tolist()
    assert as_library(family, second["input_ids"]) == expected


def test_rows_of_messages(family: Path, tmp_path: Path) -> None:
    if family.name == "paligemma":
        pytest.skip("PaliGemma knows no turns")
    content = [{"type": "text", "text": "this "}, {"type": "image"}, {"type": "text", "text": _QUESTION}]
    messages = [
        {"role": "developer", "content": "You look at the pictures."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "A thing."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and the other?"}]},
    ]
    spec = job(family, tmp_path, [{"messages": messages, "images": ["0.png", "1.png"]}])
    ((sample, _),) = samples(spec)
    assert sample["error"] is None
    turns = [told("system", "You look at the pictures."), user("this ", 1, _QUESTION), told("assistant", "A thing.")]
    expected = whole_call(family, [*turns, user(2, "and the other?")], [picture(0), picture(1)])
    assert as_library(family, sample["input_ids"]) == expected["input_ids"][0].tolist()


def test_the_plan_counts_what_runs(family: Path, tmp_path: Path) -> None:
    rows = [{"question": _QUESTION, "image": f"{number}.png"} for number in (0, 1, 0)]
    spec = job(family, tmp_path, [*rows, {"question": "x", "image": "narrow.png"}])
    plan = plan_job(spec)
    ran = [sample["input_ids"] for sample, _ in samples(spec)]
    assert plan.prompt_tokens == [len(ids) for ids in ran if ids is not None]
    assert plan.image_tokens == sum(token < 0 for ids in ran if ids is not None for token in ids)
    assert plan.bad_samples == {"image_too_narrow": 1}
    told_from = "sizes" if ours(family).counts_by_size else "prepared pictures"
    assert f"picture tokens   counted from {told_from}" in plan.table().splitlines()


def test_a_system_prompt_without_a_place_stops_the_job_before_its_rows(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [{"question": _QUESTION, "image": "0.png"}]
    spec = job(checkpoint("paligemma"), tmp_path, rows, prompt={"system": "Be brief."})
    with pytest.raises(SpecError, match=r"prompt\.system: the model's chat template has no place"):
        open_job(spec)
    open_job(job(checkpoint("gemma3"), tmp_path, rows, prompt={"system": "Be brief."}))


def test_config_json_says_whose_processor_it_is(checkpoint: Callable[[str], Path]) -> None:
    assert isinstance(load_processor(ModelSpec()), Phi3VisionProcessor)
    folder = str(checkpoint("qwen2_vl"))
    found = load_processor(ModelSpec(path=folder, processor_options={"max_pixels": 3136}))
    assert isinstance(found, LibraryProcessor)
    assert found is load_processor(ModelSpec(path=folder, processor_options={"max_pixels": 3136}))
    placeholder = found.placeholder(500, 500)
    assert placeholder is not None
    assert placeholder.num_tokens == 4


def test_an_option_of_another_model_is_an_error(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"model\.num_crops: only Phi-3-Vision has it.*model\.processor_options"):
        load_processor(ModelSpec(path=str(checkpoint("qwen2_vl")), num_crops=4))
    with pytest.raises(ModelError, match=r"model\.processor_options: Phi-3-Vision has none; model\.num_crops"):
        load_processor(ModelSpec(processor_options={"max_pixels": 3136}))


def test_what_changes_a_prompt_is_in_the_fingerprint(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("qwen2_vl")
    assert "chat_template.jinja" in file_digests(folder)
    rows = [{"question": _QUESTION, "image": "0.png"}]
    spec, source, _ = open_job(job(folder, tmp_path, rows, model={"processor_options": {"max_pixels": 3136}}))
    assert fingerprint_fields(spec, source)["model.processor_options.max_pixels"] == 3136
