"""What weights in 8 bits change: answers, memory and speed, of the demo's model over its questions.

    python -m ray_job bench quantization --rows 1000

One process, one engine after the other over the same rows, several rounds; the ratio of seconds is the median over
rounds of this way's to whole weights' in the same round. Runs without Ray.

Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from ray_job.bench.agreement import samples
from ray_job.demo.questions import make_split
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Vocabulary, run
from ray_job.models.casting import cast_where_slow
from ray_job.models.loading import DEMO, model_folder
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load
from ray_job.models.quantization import Quantization, quantize_layers, stored_bytes
from ray_job.rows import Sample
from ray_job.spec import ModelSpec

_WHOLE = "whole"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rows with each kind of weights in turn, prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_job bench quantization", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    processor = Phi3VisionProcessor.from_pretrained(model_folder(ModelSpec(path=DEMO)))
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
    rows, truths = samples(processor, arguments.rows), _truths(arguments.rows)
    packed = {kind: _Way(kind, arguments.dtype, arguments.device) for kind in (_WHOLE, *get_args(Quantization))}
    seconds: dict[str, list[float]] = {kind: [] for kind in packed}
    texts: dict[str, dict[int, str | None]] = {}
    for _ in range(arguments.rounds):
        for kind, way in packed.items():
            started_s = time.perf_counter()
            texts[kind] = way.answers(rows, vocabulary)
            seconds[kind].append(time.perf_counter() - started_s)
    found = {kind: _figures(kind, packed, seconds, texts, truths) for kind in packed}
    _print_table(found, len(rows), arguments)
    settings = {"rows": len(rows), "dtype": arguments.dtype, "device": arguments.device, "threads": arguments.threads}
    print(json.dumps({"benchmark": "quantization", **settings, "torch": torch.__version__, "ways": found}))
    return 0


class _Way:
    """The demo's model with one kind of weights."""

    def __init__(self, kind: str, dtype: str, device: str) -> None:
        model = cast_where_slow(load(model_folder(ModelSpec(path=DEMO)), dtype=getattr(torch, dtype), device=device))
        quantizations: Mapping[str, Quantization] = {kind: kind for kind in get_args(Quantization)}
        if kind in quantizations:
            quantize_layers(model.model.layers, quantizations[kind], model.dtype, device)
        self._packed = PackedPhi3Vision(model)
        self.decoder_bytes = sum(map(stored_bytes, model.model.layers.parameters()))
        self.copies_bytes = self._packed.packed_bytes

    def answers(self, rows: Sequence[Sample], vocabulary: Vocabulary) -> dict[int, str | None]:
        """Texts by row, from a new engine that keeps nothing of earlier rounds."""
        return {result.key: result.text for result in run(ContinuousEngine(self._packed, vocabulary), rows)}


@functools.cache
def _truths(count: int) -> list[str]:
    """The right answers to `agreement.samples`."""
    return [qa.answer for example in make_split("test", count) for qa in example.questions][:count]


def _figures(
    kind: str,
    ways: Mapping[str, _Way],
    seconds: Mapping[str, Sequence[float]],
    texts: Mapping[str, Mapping[int, str | None]],
    truths: Sequence[str],
) -> dict[str, float]:
    whole, own = texts[_WHOLE], texts[kind]
    ratios = [mine / theirs for mine, theirs in zip(seconds[kind], seconds[_WHOLE], strict=True)]
    return {
        "differ": sum(own[key] != whole[key] for key in whole),
        "right": sum((own[key] or "").strip() == truths[key] for key in own),
        "decoder_mb": round(ways[kind].decoder_bytes / 1e6, 3),
        "copies_mb": round(ways[kind].copies_bytes / 1e6, 3),
        "seconds": round(statistics.median(seconds[kind]), 2),
        "times_as_long": round(statistics.median(ratios), 2),
    }


def _print_table(found: Mapping[str, Mapping[str, float]], num_rows: int, arguments: argparse.Namespace) -> None:
    print(
        f"{arguments.dtype} on {arguments.device}, {num_rows} rows, {arguments.rounds} rounds; rows that differ from "
        "whole weights, rows that are right, MB of the decoder's layers and of copies laid out for decoding"
    )
    columns = ("differ", "right", "decoder_mb", "copies_mb", "seconds", "times_as_long")
    print(f"  {'weights':10}" + "".join(f"{name:>15}" for name in columns))
    for kind, figures in found.items():
        print(f"  {kind:10}" + "".join(f"{figures[name]:>15}" for name in columns))


if __name__ == "__main__":
    raise SystemExit(main())
