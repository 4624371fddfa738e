"""Runs inside an environment with vLLM: `python vllm_rows.py FOLDER` answers the rows of FOLDER/request.json.

For a CPU `.ci/vllm FOLDER` makes one (libtcmalloc-minimal4 of the system is preloaded where it is found).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from vllm import LLM, SamplingParams
from vllm import __version__ as vllm_version

from ray_job.models.vllm.phi3_vision import NUM_CROPS

FOLDER = Path(sys.argv[1])
REQUEST: dict[str, Any] = json.loads((FOLDER / "request.json").read_text())


def main() -> None:
    """Warms up, answers the rows with cold caches, and writes result.json."""
    started_s = time.perf_counter()
    # Of Phi-3-Vision our processor does it all; that of another model has a tokenizer.
    own: dict[str, Any] = {}
    if REQUEST["num_crops"] is not None:
        own = {"skip_tokenizer_init": True, "hf_overrides": {NUM_CROPS: REQUEST["num_crops"]}}
    llm = LLM(
        model=str(FOLDER / "model"),
        **own,
        dtype=REQUEST["dtype"],
        max_model_len=REQUEST["max_model_len"],
        max_num_seqs=REQUEST["max_num_seqs"],
        limit_mm_per_prompt={"image": REQUEST["max_pictures"]},
        enforce_eager=True,
        seed=0,
    )
    _answer(llm, REQUEST["warm_up"])
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    start_up_s = time.perf_counter() - started_s
    prompts, params = _prompts(REQUEST["rows"])
    cpu_started_s, started_s = _cpu_s(), time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started_s
    cpu_s = _cpu_s() - cpu_started_s
    tokens = {
        str(row["key"]): list(output.outputs[0].token_ids) for row, output in zip(REQUEST["rows"], outputs, strict=True)
    }
    found = {"seconds": seconds, "cpu_s": cpu_s, "start_up_s": start_up_s, "tokens": tokens, "version": vllm_version}
    (FOLDER / "result.json").write_text(json.dumps(found))


def _answer(llm: LLM, rows: Sequence[Mapping[str, Any]]) -> None:
    prompts, params = _prompts(rows)
    llm.generate(prompts, params, use_tqdm=False)


def _prompts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[SamplingParams]]:
    from PIL import Image

    pictures = {file.stem: Image.fromarray(np.load(file)) for file in (FOLDER / "pictures").glob("*.npy")}
    prompts = [
        {
            "prompt_token_ids": row["input_ids"],
            "multi_modal_data": {"image": [pictures[name] for name in row["pictures"]]},
            "multi_modal_uuids": {"image": list(row["pictures"])},
        }
        for row in rows
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=row["max_new_tokens"], ignore_eos=True, detokenize=False)
        for row in rows
    ]
    return prompts, params


def _cpu_s() -> float:
    """Processor time of this process and those vLLM started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in [here, *here.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
