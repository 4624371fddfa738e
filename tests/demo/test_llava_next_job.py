"""The whole job with a trained model of the library: right, and row by row what the library's `generate` answers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from ray_job.demo.run import make_inputs, score_answers
from ray_job.demo.training.llava_next.preparation import messages
from ray_job.inputs.pictures.decode import decode
from ray_job.job import run_job
from ray_job.models.loading import model_folder
from ray_job.rows import ROW_ID
from ray_job.spec import JobSpec, LimitsSpec

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Run:
    spec: JobSpec
    num_rows: int
    num_broken: int
    answers: list[dict[str, Any]]
    errors: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["continuous", "static"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Run:
    folder = tmp_path_factory.mktemp("demo") / "run"
    num_rows, num_broken = make_inputs(folder, 40, seed=3)
    model = ["model.path=builtin:demo-llava-next", "model.dtype=float32", "model.device=cpu"]
    batching = [f"batching.engine={request.param}", "batching.max_batch_rows=8"]
    spec = JobSpec.from_yaml(folder / "job.yaml", [*model, *batching])
    run_job(spec, stream=io.StringIO())
    answers = pq.read_table(folder / "answers" / "data").to_pylist()
    return Run(spec, num_rows, num_broken, answers, pq.read_table(folder / "answers" / "errors").to_pylist())


def test_it_is_right_and_no_row_is_lost(run: Run) -> None:
    ids = [row[ROW_ID] for row in (*run.answers, *run.errors)]
    assert len(ids) == len(set(ids)) == run.num_rows
    assert len(run.errors) == run.num_broken > 0
    assert all(row["broken"] for row in run.errors)
    score = score_answers([row for row in run.answers if row["kind"] != "json"])  # which is younger than the model
    assert score.answerable > 120
    assert score.accuracy >= 0.90, score.by_kind


def test_every_answer_is_the_librarys_own(run: Run) -> None:
    folder = model_folder(run.spec.model)
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    [questions] = run.spec.input.path
    images = {row["id"]: row["images"] for row in pq.read_table(questions).to_pylist()}
    # How pages of documents are drawn is the job's own business.
    rows = [row for row in run.answers if not any(path.endswith(".pdf") for path in images[row[ROW_ID]])]
    assert len(rows) > 100
    for row in rows:
        files = [Path(questions).parent / path for path in images[row[ROW_ID]]]
        pictures = [decode(file.read_bytes(), LimitsSpec()) for file in files]
        inputs = processor.apply_chat_template(
            messages(row["question"], pictures),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            ids_1L = model.generate(**inputs, do_sample=False, max_new_tokens=run.spec.generation.max_new_tokens)
        prompt_len = inputs["input_ids"].shape[1]
        assert row["usage"]["prompt_tokens"] == prompt_len, row[ROW_ID]
        text = processor.decode(ids_1L[0, prompt_len:], skip_special_tokens=True)
        assert row["generated_text"] == text, row[ROW_ID]
