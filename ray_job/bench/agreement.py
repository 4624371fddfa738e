"""How many rows get another answer in company than alone: the demo's model and questions, in any dtype.

    python -m ray_job bench agreement --rows 1000 --dtype bfloat16

In float32 none may. In bfloat16 a product's sums are rounded in an order that depends on its shape, so that two tokens
nearly as likely can change places; this counts how often they do. Runs without Ray.

Measured on two AVX2 cores, 1,000 rows of 16 tokens each in bfloat16, against each row alone in the static engine: 1 row
differs in static batches of 8, 44 in the continuous engine, 42 in it with 5 slots and nothing shared. How many of those
differ for their company, and how many because the continuous engine's attention rounds at other places than the static
one's, is not told apart. In float32 none of 300 differs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch

from ray_job.demo.batches import prompt_parts
from ray_job.demo.questions import make_split
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.models import DEMO, model_folder
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams, ModelSpec

_MAX_NEW_TOKENS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every row alone and together, prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_job bench agreement", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    folder = model_folder(ModelSpec(path=DEMO))
    processor = Phi3VisionProcessor.from_pretrained(folder)
    model = load(folder, dtype=getattr(torch, arguments.dtype), device=arguments.device)
    # No stop token ends a row: every token more is one more chance to differ.
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)
    packed = PackedPhi3Vision(model)
    engines: dict[str, Callable[[], Engine]] = {
        "alone": lambda: StaticEngine(model, vocabulary, max_batch_rows=1),
        "static batches of 8": lambda: StaticEngine(model, vocabulary, max_batch_rows=8),
        "continuous, 32 slots": lambda: ContinuousEngine(packed, vocabulary),
        "continuous, 5 slots, nothing shared": lambda: ContinuousEngine(
            packed, vocabulary, max_slots=5, prefix_sharing=False, vision_cache_bytes=0, answer_duplicates=False
        ),
    }
    rows = samples(processor, arguments.rows)
    alone: dict[int, tuple[int, ...]] = {}
    differing = {}
    print(f"{arguments.dtype}, {len(rows)} rows, {_MAX_NEW_TOKENS} tokens each")
    for name, make in engines.items():
        started_s = time.perf_counter()
        answers = {result.key: tuple(result.token_ids) for result in run(make(), rows)}
        alone = alone or answers
        differing[name] = sum(answers[key] != tokens for key, tokens in alone.items())
        print(f"  {name:38} {differing[name]:5} differ   {time.perf_counter() - started_s:7.1f} s", flush=True)
    print(json.dumps({"benchmark": "agreement", "dtype": arguments.dtype, "rows": len(rows), "differ": differing}))
    return 0


def samples(processor: Phi3VisionProcessor, count: int) -> list[Sample]:
    """The first `count` questions of the demo's test split."""
    rows: list[Sample] = []
    for example in make_split("test", count):
        pictures = [
            Picture(b"%d/%d" % (example.seed, number), processor.picture(picture))
            for number, picture in enumerate(example.pictures)
        ]
        tokens = [processor.image_tokens(*picture.size) for picture in example.pictures]
        for question in example.questions:
            ids = processor.encode(prompt_parts(processor, question.question, len(tokens)), tokens)
            rows.append(Sample(len(rows), ids, pictures, GenerationParams(max_new_tokens=_MAX_NEW_TOKENS)))
        if len(rows) >= count:
            break
    return rows[:count]


if __name__ == "__main__":
    raise SystemExit(main())
