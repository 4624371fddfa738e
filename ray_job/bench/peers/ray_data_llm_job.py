"""`PYTHON -m ray_job.bench.peers.ray_data_llm_job JOB.yaml`: the job as Ray Data LLM does it, over vLLM.

In the environment that vllm_rows.py describes. Prompts and pictures are made by our preparing code, in its `preprocess`
tasks, and go to the engine as token ids: vLLM has no processor of its own for this model.
"""

from __future__ import annotations

import sys
from typing import Any

import ray.data
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from ray_job.bench.peers.rows import answer_text, sample_of
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
from ray_job.models.vllm.phi3_vision import NUM_CROPS
from ray_job.models.vllm.prompts import PromptFormat
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job


def main() -> None:
    """Does the job of the spec named on the command line."""
    spec, _, preparer = open_job(JobSpec.from_yaml(sys.argv[1]))
    processor = load_processor(spec.model)
    assert isinstance(processor, Phi3VisionProcessor)

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        sample = sample_of(preparer, row)
        prompt = PromptFormat(PIXELS).prompt(sample)
        return {
            "tokenized_prompt": prompt["prompt_token_ids"],
            "multimodal_data": prompt["multi_modal_data"],
            "multimodal_uuids": prompt["multi_modal_uuids"],
            "sampling_params": {
                "temperature": 0.0,
                "max_tokens": sample.params.max_new_tokens,
                "stop_token_ids": list(processor.stop_ids),
                "ignore_eos": True,
                "detokenize": False,
            },
        }

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"row_id": row["id"], "generated_text": answer_text(processor, row["generated_tokens"])}

    config = vLLMEngineProcessorConfig(
        model_source=spec.model.path,
        engine_kwargs={
            "dtype": spec.model.dtype,
            "skip_tokenizer_init": True,
            "hf_overrides": {NUM_CROPS: processor.num_crops},
            "max_model_len": 4096,  # vLLM rotates every row by the long factors where it may become longer
            "max_num_seqs": spec.batching.max_batch_rows,
            "limit_mm_per_prompt": {"image": 1},
            "enforce_eager": True,
        },
        placement_group_config={"bundles": [{"CPU": 1}]},  # else it waits for a GPU
        log_engine_metrics=False,  # they need Ray Serve
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    answer = build_processor(config, preprocess=preprocess, postprocess=postprocess)
    answer(ray.data.read_parquet(list(spec.input.path))).write_parquet(spec.output.path)


if __name__ == "__main__":
    main()
