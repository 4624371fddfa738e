"""A model of the library, its pictures undone, in vLLM: the library's own tokens. Needs vLLM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ray_job.bench.library import name_as_published
from ray_job.engine.interface import run
from ray_job.errors import ErrorCode, ModelError
from ray_job.models.engines import load_engine
from ray_job.models.loading import job_processor
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import FinishReason, Picture, Sample
from ray_job.spec import GenerationParams, JobSpec
from tests.models.auto import families

from .compared import COMPARED, REFUSED
from .conftest import PLACEMENT, vllm_spec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
SIZES = [(70, 90), (120, 60), (56, 56), (200, 150), (33, 170), (90, 90)]
MAX_NEW_TOKENS = 12
WITH_TOWER = ("llava", "llava_next", "llava_onevision", "paligemma", "gemma3")
NEAR_TIE = 1e-3  # of logits; torchvision, which vLLM's processors use, rounds a few pixels otherwise than Pillow


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randint(256, (4, 4, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(rough.numpy()).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a size that vLLM has a kernel for."""
    for name, value in {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}.items():
        monkeypatch.setitem(families._TEXT, name, value)


@pytest.mark.parametrize("family", COMPARED)
def test_a_librarys_model_answers_as_the_library_generates(family: str, tmp_path: Path) -> None:
    library, model = write(family, tmp_path / "model")
    check(answers(vllm_spec(model={"path": str(tmp_path / "model")})), expected(library, model))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2_vl", {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4}}),
        ("idefics3", {"do_image_splitting": False}),
    ],
)
def test_options_of_the_processor_mean_what_they_mean_in_the_library(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    library, model = write(family, tmp_path / "model")
    plain = expected(library, model)
    for name, value in options.items():
        setattr(library.image_processor, name, value)
    changed = expected(library, model)
    assert [row.prompt_tokens for row in changed] != [row.prompt_tokens for row in plain]
    spec = vllm_spec(model={"path": str(tmp_path / "model"), "processor_options": options})
    check(answers(spec), changed)


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_what_vllm_computes_otherwise_is_refused(family: str, reason: str, tmp_path: Path) -> None:
    write(family, tmp_path / "model")
    with pytest.raises(ModelError, match=reason):
        answers(vllm_spec(model={"path": str(tmp_path / "model")}))


def test_options_that_vllm_counts_otherwise_are_refused(tmp_path: Path) -> None:
    write("llava", tmp_path / "model")
    options = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    with pytest.raises(ModelError, match=r"with model\.processor_options .*; leave them out"):
        answers(vllm_spec(model={"path": str(tmp_path / "model"), "processor_options": options}))


def test_a_picture_is_answered_after_a_row_that_was_too_long_for_it(tmp_path: Path) -> None:
    """It was prepared for that row, and vLLM was never given it."""
    write("llava", tmp_path / "model")
    spec = vllm_spec(model={"path": str(tmp_path / "model")})
    engine = load_engine(spec, PLACEMENT)
    good = rows(spec)[0]
    num_left = 2048 - len(good.input_ids) - 1
    long = dataclasses.replace(good, key=1, input_ids=[*good.input_ids, *[97] * num_left])
    (failed,), (answered,) = list(run(engine, [long])), list(run(engine, [good]))
    assert failed.error is not None
    assert failed.error.code == ErrorCode.PROMPT_TOO_LONG
    assert answered.error is None, answered
    assert len(answered.token_ids) > 1


def write(family: str, folder: Path) -> tuple[Any, Any]:
    """A checkpoint as it would be published."""
    library, model = families.write(family, folder)
    if family in WITH_TOWER:
        name_as_published(folder / "model.safetensors")
    return library, model


def rows(spec: JobSpec) -> list[Sample]:
    """A picture and a question each."""
    processor = job_processor(spec)
    samples = []
    for key, size in enumerate(SIZES):
        prepared = processor.prepare(picture(key, size))
        ids = processor.encode_chat([Message("user", (ImageTag(1), Text(question(key))))], [prepared.placeholder])
        pictures = [Picture(bytes([key]), prepared.arrays)]
        samples.append(Sample(key, ids, pictures, GenerationParams(max_new_tokens=MAX_NEW_TOKENS)))
    return samples


def answers(spec: JobSpec) -> dict[int, tuple[int, list[object]]]:
    """vLLM's, by row: how many tokens it reads, and which it gives."""
    found = {}
    for result in run(load_engine(spec, PLACEMENT), rows(spec)):
        assert result.error is None, result
        ending = [] if result.finish_reason == FinishReason.LENGTH else ["stopped"]
        found[result.key] = (result.prompt_tokens, [*result.token_ids, *ending])
    return found


def check(found: dict[int, tuple[int, list[object]]], expected: list[Generated]) -> None:
    """Equal, but for one row at most that goes another way where two tokens are as likely for the library."""
    tied = []
    for key, row in enumerate(expected):
        prompt_tokens, tokens = found[key]
        assert prompt_tokens == row.prompt_tokens
        if tokens != row.tokens:
            place = next(
                place for place, (ours, its) in enumerate(zip(tokens, row.tokens, strict=False)) if ours != its
            )
            assert row.leads[place] < NEAR_TIE, (key, tokens, row)
            tied.append(key)
    assert len(tied) <= 1


def expected(library: Any, model: Any) -> list[Generated]:
    """The library's answers."""
    return [generated(library, model, picture(key, size), question(key)) for key, size in enumerate(SIZES)]


def question(key: int) -> str:
    return f"what is {key}?"


@dataclass(frozen=True)
class Generated:
    """What the library reads and gives."""

    prompt_tokens: int
    tokens: list[object]
    leads: list[float]  # by which the logit of each token exceeds the next likely one's


@torch.inference_mode()
def generated(library: Any, model: Any, image: Image.Image, question: str) -> Generated:
    """Greedily."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = library.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    settings = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **settings)
    num_prompt = inputs["input_ids"].shape[1]
    answer, stop = found.sequences[0].tolist()[num_prompt:], model.generation_config.eos_token_id
    leads = [float(-torch.diff(logits[0].topk(2).values)) for logits in found.logits]
    return Generated(num_prompt, [*answer[: answer.index(stop)], "stopped"] if stop in answer else answer, leads)
