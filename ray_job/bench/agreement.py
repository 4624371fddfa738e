"""How many rows are answered differently beside other rows than alone: the demo's model and questions, in any dtype.

    python -m ray_job bench agreement --rows 1000 --dtype bfloat16

In float32 none may. In bfloat16 a product's sums are rounded in an order that depends on its shape, so that two tokens
nearly as likely can change places; this counts how often they do, against each row alone in the static engine, and
alone in the same engine with nothing shared. Runs without Ray.

Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ray_job.demo.questions import make_split
from ray_job.demo.training.phi3_vision import prompt_parts
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.models.casting import cast_where_slow
from ray_job.models.loading import DEMO, model_folder
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
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
    parser.add_argument(
        "--native", action="store_true", help="compute in the dtype even where a CPU is slow at it and jobs do not"
    )
    arguments = parser.parse_args(argv)
    folder = model_folder(ModelSpec(path=DEMO))
    processor = Phi3VisionProcessor.from_pretrained(folder)
    model = load(folder, dtype=getattr(torch, arguments.dtype), device=arguments.device)
    if not arguments.native:
        model = cast_where_slow(model)
    # No stop token ends a row: every token more is one more chance to differ.
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)
    packed = PackedPhi3Vision(model)
    shares_nothing = functools.partial(
        ContinuousEngine, packed, vocabulary, prefix_sharing=False, vision_cache_bytes=0, answer_duplicates=False
    )
    engines: dict[str, Callable[[], Engine]] = {
        "static, alone": lambda: StaticEngine(PaddedPhi3Vision(model), vocabulary, max_batch_rows=1),
        "static, batches of 8": lambda: StaticEngine(PaddedPhi3Vision(model), vocabulary, max_batch_rows=8),
        "continuous, alone": lambda: shares_nothing(max_slots=1),
        "continuous, 32 slots": lambda: ContinuousEngine(packed, vocabulary),
        "continuous, 5 slots, nothing shared": lambda: shares_nothing(max_slots=5),
    }
    rows = samples(processor, arguments.rows)
    answers: dict[str, dict[int, tuple[int, ...]]] = {}
    differing: dict[str, dict[str, int]] = {}
    computed = str(model.dtype).removeprefix("torch.")
    print(
        f"{arguments.dtype}, computed in {computed}, {len(rows)} rows, {_MAX_NEW_TOKENS} tokens each; rows that differ"
    )
    print(f"  {'':38}{'from static, alone':>20}{'from its own, alone':>21}{'seconds':>10}")
    for name, make in engines.items():
        started_s = time.perf_counter()
        answers[name] = {result.key: tuple(result.token_ids) for result in run(make(), rows)}
        seconds = time.perf_counter() - started_s
        others = ("static, alone", f"{name.split(',')[0]}, alone")
        differing[name] = {other: _differing(answers[name], answers[other]) for other in others}
        shown = [differing[name][other] for other in others]
        print(f"  {name:38}{shown[0]:20}{shown[1]:21}{seconds:10.1f}", flush=True)
    report = {"benchmark": "agreement", "dtype": arguments.dtype, "computed_in": computed, "rows": len(rows)}
    print(json.dumps({**report, "differ_from": differing}))
    return 0


def _differing(answers: Mapping[int, tuple[int, ...]], others: Mapping[int, tuple[int, ...]]) -> int:
    return sum(answers[key] != tokens for key, tokens in others.items())


def samples(processor: Phi3VisionProcessor, count: int) -> list[Sample]:
    """The first `count` questions of the demo's test split."""
    rows: list[Sample] = []
    for example in make_split("test", count):
        pictures = [
            Picture(b"%d/%d" % (example.seed, number), {PIXELS: processor.picture(picture)})
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
