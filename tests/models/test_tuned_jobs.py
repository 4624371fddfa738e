"""Whole jobs on a real local Ray with a fine-tune and with weights in 8 bits: other answers, another fingerprint."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job import JobSpec, run_job
from ray_job.demo.pictures import encode
from ray_job.demo.questions import make_split
from ray_job.errors import FingerprintMismatch, ModelError
from ray_job.models.loading import load_model
from ray_job.output.status import job_status
from ray_job.output.summary import Report
from ray_job.storage.places import locate

from .tuned import save_adapter

pytestmark = [
    pytest.mark.data,
    pytest.mark.cluster,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.timeout(240),
]
NUM_ROWS = 12


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's, one a row."""
    rows = [
        {"image": {"bytes": encode(example.pictures[0], "PNG"), "path": None}, "question": qa.question}
        for example in make_split("test", NUM_ROWS, seed=3)
        if len(example.pictures) == 1
        for qa in example.questions[:2]
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file = tmp_path_factory.mktemp("questions") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("image", image), ("question", pa.string())])), file)
    return file


def job(rows: Path, out: Path, mode: str = "error", **model: Any) -> JobSpec:
    return JobSpec.from_dict(
        {
            "input": {"path": str(rows)},
            "prompt": {"template": "{question}"},
            "output": {"path": str(out), "mode": mode},
            "generation": {"max_new_tokens": 12},
            "model": model,
            "workers": {"gpus_per_actor": 0, "threads": 1},
        }
    )


def run_quietly(spec: JobSpec) -> Report:
    return run_job(spec, stream=io.StringIO())


def answers(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "data", columns=["row_id", "generated_text"])
    return dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "_manifest.json").read_text())
    return found


def fields_that_differ(outs: Sequence[Path]) -> set[str]:
    one, other = (manifest(out)["fields"] for out in outs)
    return {name for name in one | other if one.get(name) != other.get(name)}


@pytest.fixture(scope="module")
def plain(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the model as it is."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run_quietly(job(questions, out))
    return out


def test_an_adapter_changes_answers_and_the_fingerprint(questions: Path, plain: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load_model(job(questions, plain))
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])
    folder = save_adapter(copy.deepcopy(model), config, tmp_path / "adapter")
    report = run_quietly(job(questions, tmp_path / "out", adapter=str(folder)))
    found, before = answers(tmp_path / "out"), answers(plain)
    assert report.totals.answered == len(found) == len(before) > NUM_ROWS
    assert sum(found[row_id] != before[row_id] for row_id in before) > len(before) / 2
    names = {f"model.adapter.{name}" for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert fields_that_differ((plain, tmp_path / "out")) == names

    # The same files elsewhere are the same adapter; without it, or with another one, answers would differ.
    shutil.move(folder, tmp_path / "moved")
    again = run_quietly(job(questions, tmp_path / "out", "resume", adapter=str(tmp_path / "moved")))
    assert again.already_done == len(before)
    other = save_adapter(copy.deepcopy(model), config, tmp_path / "other", seed=6)
    for model_fields in ({}, {"adapter": str(other)}):
        with pytest.raises(FingerprintMismatch, match=r"model\.adapter\.adapter_model\.safetensors"):
            run_quietly(job(questions, tmp_path / "out", "resume", **model_fields))


def test_an_adapter_that_does_not_fit_ends_the_job_before_any_row(questions: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load_model(job(questions, tmp_path / "out"))
    folder = save_adapter(model, peft.LoraConfig(r=4, target_modules=["o_proj"]), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(ModelError, match=r"cannot be merged into this model.*\n.*size mismatch"):
        run_quietly(job(questions, tmp_path / "out", adapter=str(folder)))
    assert manifest(tmp_path / "out")["state"] == "failed"
    assert not list((tmp_path / "out").glob("*/part-*"))


def test_8_bits_are_in_the_fingerprint_and_in_the_summary(questions: Path, plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    report = run_quietly(job(questions, tmp_path / "out", quantization="int8"))
    found, before = answers(tmp_path / "out"), answers(plain)
    assert found.keys() == before.keys()
    assert sum(found[row_id] != before[row_id] for row_id in before) < len(before) / 4
    assert fields_that_differ((plain, tmp_path / "out")) == {"model.quantization"}
    assert manifest(tmp_path / "out")["placement"]["quantization"] == "int8"
    assert manifest(tmp_path / "out")["versions"]["torchao"]
    for table in (report.table(), job_status(locate(str(tmp_path / "out"))).table()):
        assert "computed on cpu, float32, int8 weights, 1 threads an actor" in " ".join(table.split())
    assert "quantization" not in manifest(plain)["placement"]
    with pytest.raises(FingerprintMismatch, match=r"model\.quantization: was \"int8\", is absent"):
        run_quietly(job(questions, tmp_path / "out", "resume"))
