"""What vLLM is told of a job, a row and a picture. Needs no vLLM."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import pytest
from PIL import Image

from ray_job.errors import ErrorCode, ModelError, RowError, SpecError
from ray_job.inputs.opening import open_source
from ray_job.models.loading import load_processor
from ray_job.models.placement import Placement
from ray_job.models.processor import Placeholder
from ray_job.models.vllm import installation
from ray_job.models.vllm.arguments import engine_arguments
from ray_job.models.vllm.fidelity import check_attention, check_model, check_pictures
from ray_job.models.vllm.forms import drops_first_space, form_arguments
from ray_job.models.vllm.installation import SUPPORTED, check, unknown_options, vllm_version
from ray_job.models.vllm.processor import IMAGE, UndonePictures
from ray_job.models.vllm.prompts import PromptFormat
from ray_job.models.vllm.sampling import sampling_arguments
from ray_job.output.fingerprint import fingerprint_fields
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams, JobSpec, ModelSpec, StructuredOutputs

from .compared import COMPARED, REFUSED

GIB = 2**30


def spec(**sections: Any) -> JobSpec:
    batching = {"engine": "vllm", **sections.pop("batching", {})}
    return JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "batching": batching, **sections})


def placement(gpus: float = 0.0) -> Placement:
    return Placement("cuda" if gpus else "cpu", "float32", threads=1, memory_bytes=9 * GIB, gpu_share=gpus)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"batching": {"max_batch_tokens": 4096}}, "max_batch_tokens: vLLM fills the memory it may use"),
        ({"batching": {"padding_side": "right"}}, "padding_side: the vllm engine pads nothing"),
        ({"batching": {"engine": "static", "engine_options": {"quantization": "awq"}}}, "the static engine takes none"),
        ({"batching": {"engine_options": {"dtype": "float16"}}}, "dtype: set model.dtype instead"),
        ({"batching": {"engine_options": {"trust_remote_code": True}}}, "code from a model's folder is never run"),
        ({"batching": {"engine_options": {"data_parallel_size": 2}}}, "raise workers.min_actors"),
        ({"batching": {"engine_options": {"mm_processor_kwargs": {}}}}, "set model.processor_options instead"),
        ({"generation": {"structured_outputs": {"regex": "a", "close_at_limit": True}}}, "vLLM cuts answers off"),
        ({"model": {"attention": "eager"}}, "model.attention is eager, and vLLM has its own"),
        ({"model": {"adapter": "tuned"}}, "model.adapter: vLLM loads the checkpoint as it is"),
        ({"model": {"quantization": "int8"}}, "model.quantization: vLLM quantizes by itself"),
        ({"generation": {"temperature": 3}}, "generation.temperature is 3, and vLLM takes at most 2"),
        ({"workers": {"gpus_per_actor": 1.5}}, "allowed: 0 to 1, and with batching.engine: vllm 2, 3, …"),
        ({"batching": {"engine": "continuous"}, "workers": {"gpus_per_actor": 2}}, "set batching.engine: vllm"),
    ],
)
def test_what_has_no_meaning_with_vllm_is_refused(sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**sections)
    assert problem in str(caught.value)


def test_a_model_may_be_split_over_whole_gpus() -> None:
    assert spec(workers={"gpus_per_actor": 4}).workers.gpus_per_actor == 4


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        (0.0, {}, {"tensor_parallel_size": 1, "distributed_executor_backend": "uni", "enforce_eager": True}),
        (0.0, {"tensor_parallel_size": 2}, {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}),
        (1.0, {}, {"gpu_memory_utilization": 0.9, "distributed_executor_backend": "uni"}),
        (0.5, {}, {"gpu_memory_utilization": 0.45, "tensor_parallel_size": 1}),
        (4.0, {}, {"gpu_memory_utilization": 0.9, "tensor_parallel_size": 4, "distributed_executor_backend": "mp"}),
        (4.0, {"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        (1.0, {"gpu_memory_utilization": 0.5}, {"gpu_memory_utilization": 0.5}),
    ],
)
def test_the_device_is_shared_out(tmp_path: Path, gpus: float, options: dict[str, Any], expected: Any) -> None:
    found = engine_arguments(spec(batching={"engine_options": options}), placement(gpus), tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert ("kv_cache_memory_bytes" in found) == (gpus == 0)


def test_parts_that_do_not_fit_the_gpus_are_refused(tmp_path: Path) -> None:
    asked = spec(batching={"engine_options": {"tensor_parallel_size": 2}})
    with pytest.raises(ModelError, match=r"2 × 1 parts of the model for 4 GPUs; set workers\.gpus_per_actor"):
        engine_arguments(asked, placement(4.0), tmp_path)


def test_a_jobs_batching_and_limits_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(GIB // 1024))
    batching = {"max_batch_rows": 7, "share_prefixes": False, "vision_cache_mib": 512, "step_tokens": 2048}
    found = engine_arguments(
        spec(batching=batching, limits={"max_images": 3}), placement(), tmp_path, {"max_model_len": 4096}
    )
    assert found["max_num_seqs"] == 7
    assert found["enable_prefix_caching"] is False
    assert found["mm_processor_cache_gb"] == 0.5
    assert found["max_num_batched_tokens"] == 2048
    assert found["limit_mm_per_prompt"]["image"] == 3
    assert found["max_model_len"] == 4096
    assert found["kv_cache_memory_bytes"] == (9 * GIB - GIB // 1024) // 4
    assert "max_num_batched_tokens" not in engine_arguments(spec(), placement(), tmp_path)


def test_options_of_the_processor_are_passed_on(tmp_path: Path) -> None:
    options = {"max_pixels": 1003520}
    found = engine_arguments(spec(model={"processor_options": options}), placement(), tmp_path)
    assert found["mm_processor_kwargs"] == options
    assert "mm_processor_kwargs" not in engine_arguments(spec(), placement(), tmp_path)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"regex": "a|b"}, {"grammar": "start: /a|b/"}),
        ({"choice": ["yes", "no"]}, {"grammar": 'start: CHOICE\nCHOICE: "yes" | "no"'}),
        ({"grammar": 'start: "a"+'}, {"grammar": 'start: "a"+'}),
    ],
)
def test_a_form_becomes_the_other_engines_grammar(form: dict[str, Any], expected: dict[str, Any]) -> None:
    assert form_arguments(StructuredOutputs.model_validate(form)) == expected


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ({"regex": "[a-z]+"}, 'start: " "? form\nform: %lark {\nstart: /[a-z]+/\n}'),
        ({"regex": " ?[a-z]+"}, 'start: " " form\n'),
        ({"choice": ["a", " b"]}, 'start: " " form\n'),
        ({"json": True}, 'start: " "? form\nform: %json {"type": "object"'),
        ({"grammar": 'start: "a ::= }"'}, 'start: " "? form\n'),
    ],
)
def test_a_space_that_is_dropped_may_come_first(form: dict[str, Any], begins: str) -> None:
    asked = StructuredOutputs.model_validate(form)
    grammar = form_arguments(asked, drops_space=True)["grammar"]
    assert grammar.startswith(begins)
    assert llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("grammar", grammar)) == ""


def test_whether_a_tokenizer_drops_a_space_is_seen_by_decoding() -> None:
    assert drops_first_space(load_processor(ModelSpec()).decode, 598)
    words = ["", "a", " a", " "]
    assert not drops_first_space(lambda ids: "".join(words[each] for each in ids), 4)
    assert drops_first_space(lambda ids: "".join(words[each] for each in ids).removeprefix(" "), 4)
    assert not drops_first_space(lambda ids: "", 4)


def test_json_is_written_as_the_other_engines_write_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    found = form_arguments(StructuredOutputs.model_validate({"json": schema}))["json"]
    style = found.pop("x-guidance")
    assert found == schema
    assert style == {"whitespace_flexible": False, "key_separator": ": ?", "item_separator": ", ?"}


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"grammar": "start: nothing"}, "structured_outputs.grammar: .*nothing"),
        ({"json": {"type": "text"}}, "structured_outputs.json: at its top: type 'text' does not exist"),
        ({"regex": "a", "close_at_limit": True}, "structured_outputs.close_at_limit: vLLM cuts answers off"),
    ],
)
def test_a_form_that_cannot_be_held_to_is_its_rows_error(form: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError, match=problem) as caught:
        form_arguments(StructuredOutputs.model_validate(form))
    assert caught.value.code == ErrorCode.PARAMS_INVALID


def test_pictures_that_vllm_reads_otherwise_are_refused() -> None:
    inner = load_processor(ModelSpec())
    processor = UndonePictures(inner, Placeholder(1))

    def whole(sample: Sample) -> list[int]:
        (picture,) = sample.pictures
        height, width, _ = picture.arrays[IMAGE].shape
        counted = inner.placeholder(width, height)
        assert counted is not None
        return [each for token in sample.input_ids for each in ([99] * counted.num_tokens if token < 0 else [token])]

    check_pictures(processor, {}, whole)
    for other in (lambda sample: whole(sample)[1:], lambda sample: [5, *whole(sample)[1:]]):
        with pytest.raises(ModelError, match=r"100 × 60 pixels with model\.processor_options {'a': 1} as .*leave them"):
            check_pictures(processor, {"a": 1}, other)
        with pytest.raises(ModelError, match=r"100 × 60 pixels as .*; set batching\.engine: auto"):
            check_pictures(processor, {}, other)


def test_what_is_known_to_be_computed_otherwise_is_refused() -> None:
    check_model({"model_type": "llava"})
    with pytest.raises(ModelError, match="PaliGemma sees all of itself"):
        check_model({"model_type": "paligemma"})
    check_attention(True, placement(1.0))
    check_attention(False, placement())
    with pytest.raises(ModelError, match="set it to auto, or use GPUs"):
        check_attention(True, placement())


def test_sampling_says_what_the_row_says() -> None:
    params = GenerationParams(max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=5, seed=2**62, stop_token_ids=(3, 7))
    found = sampling_arguments(params, {7, 11})
    assert found == {
        "max_tokens": 9,
        "repetition_penalty": 1.0,
        "stop_token_ids": [3, 7, 11],
        "ignore_eos": True,
        "detokenize": False,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 2**62,
    }


@pytest.mark.parametrize("greedy", [{}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.0}])
def test_greedy_is_greedy_however_it_is_said(greedy: dict[str, Any]) -> None:
    found = sampling_arguments(GenerationParams(**greedy), ())
    assert (found["temperature"], "top_p" in found, "seed" in found) == (0.0, False, False)


def test_each_picture_stands_once_and_in_the_prompts_order() -> None:
    pictures = [Picture(bytes([n]), {IMAGE: np.full((2, 3, 3), n, np.uint8)}) for n in (1, 2)]
    sample = Sample(0, [5, -2, -2, 6, -1, -1, -1, 5], pictures, GenerationParams())
    for placeholder, ids in ((None, [5, -1, 6, -2, 5]), (90, [5, 90, 6, 90, 5])):
        prompt = PromptFormat(IMAGE, placeholder).prompt(sample)
        assert prompt["prompt_token_ids"] == ids
        assert prompt["multi_modal_uuids"] == {"image": ["02", "01"]}
        images = prompt["multi_modal_data"]["image"]
        assert [(image.size, image.getpixel((0, 0))) for image in images] == [((3, 2), (2, 2, 2)), ((3, 2), (1, 1, 1))]
    neighbours = Sample(0, [-1, -2], pictures, GenerationParams())
    assert PromptFormat(IMAGE, 90).prompt(neighbours)["prompt_token_ids"] == [90, 90]
    assert PromptFormat(IMAGE, 90).prompt(Sample(0, [5, 6], [], GenerationParams())) == {"prompt_token_ids": [5, 6]}


def test_an_undone_picture_is_itself_and_one_token() -> None:
    inner = load_processor(ModelSpec())
    processor = UndonePictures(inner, Placeholder(1))
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    prepared = processor.prepare(image)
    assert np.array_equal(prepared.arrays[IMAGE], np.asarray(image))
    ids = processor.encode_chat([Message("user", (ImageTag(1), Text("what?")))], [prepared.placeholder])
    assert [token for token in ids if token < 0] == [-1]
    counted = processor.placeholder(70, 50)
    assert counted == inner.placeholder(70, 50)
    assert counted is not None
    assert counted.num_tokens > 1


def test_unknown_options_are_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.models.vllm.installation.vllm_version", lambda: "0.32.0")
    (line,) = unknown_options(["quantisation", "seed"], ["quantization", "seed"])
    assert line == (
        "batching.engine_options.quantisation: vLLM 0.32.0 has no such engine argument; did you mean 'quantization'?"
    )


def test_another_vllm_than_works_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "is_installed", lambda: True)
    for known, found in (("0.32.0", True), ("0.32.1rc1", True), ("0.3.2", False), ("0.33.0", False), ("0.320", False)):
        monkeypatch.setattr(installation, "version", lambda _, known=known: known)
        if found:
            assert vllm_version() == known
        else:
            with pytest.raises(ModelError, match=rf"vLLM {known} is installed on .* works with 0\.32"):
                vllm_version()


def test_the_version_that_works_is_the_extras() -> None:
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    major, minor = SUPPORTED.split(".")
    assert extras["optional-dependencies"]["vllm"] == [f"vllm>={SUPPORTED},<{major}.{int(minor) + 1}"]


def test_the_readme_names_the_families_that_were_compared() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text().partition("### Over vLLM")[2].partition("\n## ")[0]
    shown = dict(re.findall(r"^\| (.+?) \| (the same|refused)\b.* \|$", text, re.MULTILINE))
    refused = {"gemma3": "Gemma 3 on CPUs", "paligemma": "PaliGemma"}
    assert refused.keys() == REFUSED.keys()
    assert shown == {
        **dict.fromkeys([", ".join(COMPARED.values())], "the same"),
        **dict.fromkeys(refused.values(), "refused"),
    }


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_the_job_ends_before_ray_starts() -> None:
    check(JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}}))
    with pytest.raises(ModelError, match=r"not installed on .*pip install 'ray_job\[vllm\]'"):
        check(spec())


def test_the_fingerprint_has_vllm_and_what_it_answers_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.output.fingerprint.vllm_version", lambda: "0.32.0")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "prompt": "what?"}) + "\n")

    def fields(**batching: Any) -> dict[str, Any]:
        asked = spec(batching=batching).model_copy(update={"input": spec().input})
        asked = JobSpec.from_dict({**asked.model_dump(), "input": {"path": str(tmp_path / "rows.jsonl")}})
        source = open_source(asked)
        return fingerprint_fields(asked.model_copy(update={"prompt": source.prompt}), source)

    plain = {name for name in fields(engine="continuous") if name.startswith("batching")}
    assert plain == set()
    found = fields(engine_options={"quantization": "fp8", "gpu_memory_utilization": 0.8})
    assert {name: value for name, value in found.items() if name.startswith("batching")} == {
        "batching.engine": "vllm",
        "batching.engine_options.quantization": "fp8",
        "batching.vllm_version": "0.32.0",
    }
