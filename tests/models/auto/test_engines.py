"""Which engine a job over a library model gets: both answer alike, and what does not fit says why."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, run
from ray_job.engine.static import StaticEngine
from ray_job.errors import ModelError
from ray_job.models import engines
from ray_job.models.auto import gate
from ray_job.models.auto.padded import PaddedAuto
from ray_job.models.auto.unfit import Unfit
from ray_job.models.engines import check_engine, choose_engine
from ray_job.models.loading import load_processor
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams, JobSpec
from tests.models.auto.families import FAMILIES, write

EVERY_TIME = {"llava_next", "smolvlm", "qwen3_vl", "gemma3"}


def spec_of(folder: Path, **batching: Any) -> JobSpec:
    return JobSpec.from_dict(
        {
            "input": {"path": "rows.parquet"},
            "prompt": {"template": "What?"},
            "output": {"path": "answers"},
            "model": {"path": str(folder), "device": "cpu"},
            "workers": {"threads": 1},
            "batching": {"max_batch_tokens": 4000, **batching},
        }
    )


def rows_of(spec: JobSpec) -> list[Sample]:
    """Prepared by the model's processor: pictures asked about twice, in two sizes."""
    processor, rng = load_processor(spec.model), random.Random(0)
    samples = []
    for key in range(6):
        pixels = np.random.default_rng(key // 2).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        prepared = processor.prepare(Image.fromarray(pixels).resize([(80, 60), (60, 120)][key // 2 % 2]))
        message = Message("user", (ImageTag(1), Text("what is this " * rng.randint(1, 5))))
        ids = processor.encode_chat([message], [prepared.placeholder])
        picture = Picture(bytes([key // 2]), prepared.arrays)
        samples.append(Sample(key, ids, [picture], GenerationParams(max_new_tokens=rng.randint(3, 9))))
    return samples


def texts(engine: Engine, samples: list[Sample]) -> dict[int, tuple[Any, ...]]:
    results = {result.key: result for result in run(engine, samples)}
    assert [result.error for result in results.values() if result.error is not None] == []
    return {key: (result.token_ids, result.text, result.finish_reason) for key, result in results.items()}


@pytest.mark.parametrize(
    "name", [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_auto_is_continuous_and_static_answers_the_same(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    chosen = choose_engine(spec_of(tmp_path))
    assert (type(chosen.engine), chosen.name, chosen.reason) == (ContinuousEngine, "continuous", None)
    static = choose_engine(spec_of(tmp_path, engine="static", max_batch_rows=4))
    assert (type(static.engine), static.name, static.reason) == (StaticEngine, "static", None)
    samples = rows_of(spec_of(tmp_path))
    answers = texts(chosen.engine, samples)
    assert len({tokens for tokens, _, _ in answers.values()}) > 3
    assert texts(static.engine, samples) == answers


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    write("llava", folder)
    return folder


def test_a_model_that_the_probe_refuses_runs_in_static_batches(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Unfit("its logits differ")

    expected = texts(choose_engine(spec_of(llava)).engine, rows_of(spec_of(llava)))
    monkeypatch.setattr(gate, "check_answers", refuse)
    chosen = choose_engine(spec_of(llava))
    assert (type(chosen.engine), chosen.name, chosen.reason) == (StaticEngine, "static", "its logits differ")
    assert texts(chosen.engine, rows_of(spec_of(llava))) == expected
    message = r"batching\.engine: .* cannot run in the continuous engine: its logits differ; set it to auto or static"
    with pytest.raises(ModelError, match=message):
        choose_engine(spec_of(llava, engine="continuous"))


def changed(folder: Path, target: Path, **text: Any) -> Path:
    """The model with another text configuration."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (target / "config.json").write_text(json.dumps(config))
    return target


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
    "factor": 4.0,
}


def test_rows_that_would_change_each_others_rotary_factors_run_one_at_a_time(llava: Path, tmp_path: Path) -> None:
    folder = changed(llava, tmp_path, rope_parameters=LONGROPE)
    chosen = choose_engine(spec_of(folder))
    assert (chosen.name, chosen.engine.slots().total) == ("static", 1)
    assert chosen.reason is not None
    assert "longrope" in chosen.reason.split("; ")[0]
    alone = "one row at a time, as it has rotary factors (rope_type longrope) that follow from a batch's longest row"
    assert chosen.reason.endswith(alone)
    with pytest.raises(ModelError, match=r"cannot run in the continuous engine: .*longrope"):
        check_engine(spec_of(folder, engine="continuous"))


def test_a_model_that_no_engine_runs_says_why(llava: Path, tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = changed(llava, tmp_path, rope_parameters=dynamic)
    message = r"no engine can run this model: .*dynamic.*, and it has rotary factors .* ran before; use another model"
    with pytest.raises(ModelError, match=message):
        choose_engine(spec_of(folder))


def test_a_model_that_the_library_itself_cannot_run_says_so(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise AttributeError("it has no 'image_outputs'")

    monkeypatch.setattr(PaddedAuto, "generate", broken)
    with pytest.raises(
        ModelError, match=r"it cannot be run by the library itself \(AttributeError: it has no 'image_ou"
    ):
        choose_engine(spec_of(llava, engine="static"))


def test_what_cannot_be_is_said_before_weights_are_read(llava: Path, tmp_path: Path) -> None:
    check_engine(spec_of(llava))
    with pytest.raises(ModelError, match=r"batching\.padding_side: right is for Phi-3-Vision alone; leave it out"):
        check_engine(spec_of(llava, engine="static", padding_side="right"))
    folder = changed(llava, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "newest"}))
    with pytest.raises(ModelError, match=r"newest"):
        check_engine(spec_of(folder))


def test_a_batch_that_leaks_between_rows_is_noticed(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding that is not masked."""
    generate = PaddedAuto.generate

    def leaking(self: PaddedAuto, *arguments: Any) -> None:
        library = self._model.generate
        with monkeypatch.context() as patched:
            patched.setattr(
                self._model,
                "generate",
                lambda attention_mask, **own: library(attention_mask=torch.ones_like(attention_mask), **own),
                raising=False,
            )
            generate(self, *arguments)

    monkeypatch.setattr(PaddedAuto, "generate", leaking)
    chosen = choose_engine(spec_of(llava, engine="static"))
    assert chosen.engine.slots().total == 1
    assert chosen.reason is not None
    assert chosen.reason.startswith("one row at a time, as it answers differently in a batch than alone, by ")


def test_16_bits_on_a_cpu_without_their_arithmetic(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stay in them, answers are those of a float32 model with the same rounded weights, in both engines."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    kept = spec_of(llava).model_copy(update={"model": spec_of(llava).model.model_copy(update={"dtype": "bfloat16"})})
    samples = rows_of(kept)
    answers = texts(choose_engine(kept).engine, samples)
    static = kept.model_copy(update={"batching": kept.batching.model_copy(update={"engine": "static"})})
    assert texts(choose_engine(static).engine, samples) == answers

    def rounded(spec: JobSpec, placement: Any = None) -> Any:
        model = engines_load(spec, placement)
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16).to(torch.float32)
        return model

    engines_load = engines.load_model
    monkeypatch.setattr(engines, "load_model", rounded)
    assert texts(choose_engine(spec_of(llava)).engine, samples) == answers
