"""`python -m tests.models.vllm.split`: a model split over two processes of vLLM's, for a test that kills some of them.

Prints the processes and what was answered as JSON, then goes on answering until something ends it; an error of the
engine is the last line.
"""

from __future__ import annotations

import json
import sys

import psutil

from ray_job.bench.agreement import samples
from ray_job.engine.interface import run
from ray_job.models.engines import load_engine
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.rows import Sample
from ray_job.spec import GenerationParams

from .conftest import PLACEMENT, POOL_BYTES, vllm_spec


def main() -> None:
    spec = vllm_spec(
        batching={"engine_options": {"kv_cache_memory_bytes": POOL_BYTES, "tensor_parallel_size": 2}},
    )
    processor = load_processor(spec.model)
    assert isinstance(processor, Phi3VisionProcessor)
    rows = samples(processor, 12)
    engine = load_engine(spec, PLACEMENT)
    parts = [child.pid for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]
    print(
        json.dumps({"parts": parts, "answers": {result.key: result.text for result in run(engine, rows)}}), flush=True
    )
    number = 0
    try:
        while True:
            number += 1
            endless = GenerationParams(max_new_tokens=1, stop=[f"{number}"])
            list(run(engine, [Sample(0, rows[0].input_ids, rows[0].pictures, endless)]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(3)


if __name__ == "__main__":
    main()
