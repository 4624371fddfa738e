"""A model of the library, its pictures undone, in vLLM: the library's own tokens. Needs vLLM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ray_job.bench.library import name_as_published
from ray_job.engine.interface import run
from ray_job.models.engines import load_engine
from ray_job.models.loading import job_processor
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import FinishReason, Picture, Sample
from ray_job.spec import GenerationParams
from tests.models.auto import families

from .conftest import PLACEMENT, vllm_spec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
SIZES = [(70, 90), (120, 60), (56, 56), (200, 150), (33, 170), (90, 90)]
MAX_NEW_TOKENS = 12


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randint(256, (4, 4, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(rough.numpy()).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("family", ["llava_next", "llava", "llava_onevision", "idefics3", "internvl", "smolvlm"])
def test_a_librarys_model_answers_as_the_library_generates(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"num_attention_heads": 2, "num_key_value_heads": 1}.items():  # heads that vLLM has a kernel for
        monkeypatch.setitem(families._TEXT, name, value)
    library, model = families.write(family, tmp_path / "model")
    if family.startswith("llava"):
        name_as_published(tmp_path / "model" / "model.safetensors")
    spec = vllm_spec(model={"path": str(tmp_path / "model")})
    processor = job_processor(spec)
    samples, expected = [], {}
    for key, size in enumerate(SIZES):
        image, question = picture(key, size), f"what is {key}?"
        prepared = processor.prepare(image)
        message = Message("user", (ImageTag(1), Text(question)))
        ids = processor.encode_chat([message], [prepared.placeholder])
        pictures = [Picture(bytes([key]), prepared.arrays)]
        samples.append(Sample(key, ids, pictures, GenerationParams(max_new_tokens=MAX_NEW_TOKENS)))
        expected[key] = generated(library, model, image, question)
    results = list(run(load_engine(spec, PLACEMENT), samples))
    found = {}
    for result in results:
        assert result.error is None, result
        ending = [] if result.finish_reason == FinishReason.LENGTH else ["stopped"]
        found[result.key] = (result.prompt_tokens, [*result.token_ids, *ending])
    print({key: (found[key], expected[key]) for key in found if found[key] != expected[key]}, file=sys.stderr)
    assert found == expected


@torch.inference_mode()
def generated(library: Any, model: Any, image: Image.Image, question: str) -> tuple[int, list[object]]:
    """How many tokens the library reads, and which it gives."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = library.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0].tolist()
    num_prompt = inputs["input_ids"].shape[1]
    answer, stop = ids[num_prompt:], model.generation_config.eos_token_id
    return num_prompt, [*answer[: answer.index(stop)], "stopped"] if stop in answer else answer
