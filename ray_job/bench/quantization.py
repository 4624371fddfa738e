"""What weights in 8 bits change: answers, memory and speed, of the demo's model over its questions.

    python -m ray_job bench quantization --rows 1000

One process, one engine after the other over the same rows, several rounds; `times as long` is the median over rounds of
the process's CPU time to that of whole weights in the same round. `--wide` takes the random model of `bench engine`
instead, whose answers mean nothing. Runs without Ray.

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
from ray_job.bench.engine import VOCABULARY, build_model
from ray_job.bench.workloads import Workload
from ray_job.demo.questions import make_split
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Vocabulary, run
from ray_job.models.casting import cast_where_slow
from ray_job.models.loading import DEMO, model_folder
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load
from ray_job.models.quantization import Quantization, quantize_layers, stored_bytes
from ray_job.rows import Result, Sample
from ray_job.spec import ModelSpec

_WHOLE = "whole"
_NUM_CROPS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rows with each kind of weights in turn, prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_job bench quantization", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--wide", action="store_true", help="the random model of `bench engine`, long-tailed rows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    if arguments.wide:
        make = functools.partial(build_model, False, dtype, device)
        vocab_size = make().config.vocab_size
        vocabulary, rows = VOCABULARY, Workload(0, vocab_size, _NUM_CROPS).long_tailed(arguments.rows)
    else:
        folder = model_folder(ModelSpec(path=DEMO))
        make = functools.partial(load, folder, dtype=dtype, device=device)
        processor = Phi3VisionProcessor.from_pretrained(folder)
        vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
        rows = samples(processor, arguments.rows)
    ways = {kind: _Way(make(), kind) for kind in (_WHOLE, *get_args(Quantization))}
    cpu_s: dict[str, list[float]] = {kind: [] for kind in ways}
    answers: dict[str, dict[int, Result]] = {}
    for _ in range(arguments.rounds):
        for kind, way in ways.items():
            started_s = time.process_time()
            answers[kind] = way.answers(rows, vocabulary)
            cpu_s[kind].append(time.process_time() - started_s)
    truths = None if arguments.wide else _truths(arguments.rows)
    found = {kind: _figures(kind, ways, cpu_s, answers, truths) for kind in ways}
    _print_table(found, len(rows), arguments)
    names = ("dtype", "device", "threads", "wide")
    settings = {"rows": len(rows), **{name: getattr(arguments, name) for name in names}}
    print(json.dumps({"benchmark": "quantization", **settings, "torch": torch.__version__, "ways": found}))
    return 0


class _Way:
    """A model with one kind of weights."""

    def __init__(self, model: Phi3VisionModel, kind: str) -> None:
        model = cast_where_slow(model)
        quantizations: Mapping[str, Quantization] = {kind: kind for kind in get_args(Quantization)}
        if kind in quantizations:
            quantize_layers(model.model.layers, quantizations[kind], model.dtype, model.device)
        self._packed = PackedPhi3Vision(model)
        self.decoder_bytes = sum(map(stored_bytes, model.model.layers.parameters()))
        self.copies_bytes = self._packed.packed_bytes

    def answers(self, rows: Sequence[Sample], vocabulary: Vocabulary) -> dict[int, Result]:
        """By row, from a new engine that keeps nothing of earlier rounds."""
        return {result.key: result for result in run(ContinuousEngine(self._packed, vocabulary), rows)}


def _truths(count: int) -> list[str]:
    """The right answers to `agreement.samples`."""
    return [qa.answer for example in make_split("test", count) for qa in example.questions][:count]


def _figures(
    kind: str,
    ways: Mapping[str, _Way],
    cpu_s: Mapping[str, Sequence[float]],
    answers: Mapping[str, Mapping[int, Result]],
    truths: Sequence[str] | None,
) -> dict[str, float | None]:
    whole, own = answers[_WHOLE], answers[kind]
    ratios = [mine / theirs for mine, theirs in zip(cpu_s[kind], cpu_s[_WHOLE], strict=True)]
    return {
        "differ": sum(own[key].token_ids != whole[key].token_ids for key in whole),
        "right": truths and sum((own[key].text or "").strip() == truths[key] for key in own),
        "decoder_mb": round(ways[kind].decoder_bytes / 1e6, 3),
        "copies_mb": round(ways[kind].copies_bytes / 1e6, 3),
        "cpu_s": round(statistics.median(cpu_s[kind]), 2),
        "times_as_long": round(statistics.median(ratios), 2),
    }


def _print_table(found: Mapping[str, Mapping[str, float | None]], num_rows: int, arguments: argparse.Namespace) -> None:
    print(
        f"{arguments.dtype} on {arguments.device}, {num_rows} rows, {arguments.rounds} rounds; rows that differ from "
        "whole weights, rows that are right, MB of the decoder's layers and of copies laid out for decoding"
    )
    columns = ("differ", "right", "decoder_mb", "copies_mb", "cpu_s", "times_as_long")
    print(f"  {'weights':10}" + "".join(f"{name:>15}" for name in columns))
    for kind, figures in found.items():
        print(f"  {kind:10}" + "".join(f"{figures[name]!s:>15}" for name in columns))


if __name__ == "__main__":
    raise SystemExit(main())
