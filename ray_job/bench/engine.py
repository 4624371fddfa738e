"""How fast the engine answers, against what a user would run instead: same weights, rows, dtype and machine.

    python -m ray_job bench engine
    python -m ray_job bench engine --rows 128 --only long-tailed
    python -m ray_job bench engine --full-size --device cuda
    python -m ray_job bench engine --only long-tailed --runners engine --structured texts records
    python -m ray_job bench engine --only long-tailed --peer vllm=/path/to/its/environment/bin/python
    python -m ray_job bench engine --only long-tailed --peer openvino=/path/to/another/bin/python

Weights are random, so no answer ends early. Loading and a short warm-up are not counted. Runs without Ray.
With `--peer` the model has the official tower's width, which the peers require.

Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ray_job.bench import baselines
from ray_job.bench.forms import FORMS, vocabulary_with_forms, with_form
from ray_job.bench.peers.peer import PEERS, Peer, PeerError, named_python
from ray_job.bench.roofline import measure_machine, shares
from ray_job.bench.workloads import MAKERS, Workload
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.engine.stats import EngineStats
from ray_job.models.casting import cast_where_slow
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.models.phi3_vision.preprocessor_config import FILE as PREPROCESSOR
from ray_job.models.phi3_vision.weights import init_weights, load, save
from ray_job.rows import Sample

VOCABULARY = Vocabulary(pad_id=0, stop_ids=frozenset(), detokenize=lambda ids: "")
_WORKLOADS_OF = {
    "long-tailed": ("single", "recipe", "library", "no-reuse", "engine"),
    "many-questions": ("no-reuse", "engine"),
    "uniform": ("library", "engine"),
    "long": ("single", "engine"),
}
_RUNNERS = ("single", "recipe", "library", "no-reuse", "engine")
_DESCRIPTIONS = {
    "single": "one row at a time",
    "recipe": "published recipe, batches of 8 in file order",
    "library": "transformers generate, batches of 8 by length",
    "no-reuse": "this engine, nothing reused",
    "engine": "this engine",
    **{name: f"this engine, each answer a JSON list of {name}" for name in FORMS},
    **{name: f"{title}, in its own environment" for name, title in PEERS.items()},
}
# The long workload computes an order of magnitude more tokens a row.
_ROWS_DIVISOR = {"long": 8}


@dataclass(frozen=True, slots=True)
class Measured:
    """One runner over one workload."""

    workload: str
    runner: str
    rows: int
    seconds: float
    cpu_s: float  # of all threads; with --threads 1 it hardly depends on what else the machine does
    new_tokens: int
    stats: dict[str, Any] | None  # of our engine; of a peer its version and start-up

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line."""
    arguments = _arguments(argv)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.model:
        model = load(arguments.model, dtype=dtype, device=device)
    else:
        model = build_model(arguments.full_size, dtype, device, official_tower=bool(arguments.peer))
    shaped = vocabulary_with_forms(arguments.model, model.config.vocab_size) if arguments.structured else None
    bench = _Bench(model, arguments.num_crops, arguments.seed, shaped)
    print(
        f"this machine: {bench.machine.flops_per_s / 1e9:.0f} GFLOP/s in products of matrices, "
        f"{bench.machine.copied_bytes_per_s / 1e9:.0f} GB/s in copying",
        flush=True,
    )
    bench.warm_up(_runners(arguments))
    measured: list[Measured] = []
    alike: dict[str, dict[str, int]] = {}
    failed: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        peers = _peers(arguments, model, Path(folder))
        for workload in arguments.only or list(MAKERS):
            rows = max(4, arguments.rows // _ROWS_DIVISOR.get(workload, 1))
            answers: dict[str, baselines.Answers] = {}
            runners: list[str | Peer] = [*_runners(arguments, workload), *peers]
            for runner in runners:
                name = runner.name if isinstance(runner, Peer) else runner
                try:
                    row, answers[name] = bench.measure(workload, runner, rows)
                except PeerError as error:
                    failed.append({"workload": workload, "runner": name, "reason": str(error)})
                    print(f"{workload:16}{_DESCRIPTIONS[name]:50}  failed: {error}", flush=True)
                else:
                    measured.append(row)
                    _print_row(row, measured)
            alike[workload] = _alike(answers)
            _print_workload(workload, measured, alike[workload])
    report = _report(model, measured, arguments)
    print(json.dumps({**report, "roofline": asdict(bench.machine), "rows_alike": alike, "failed": failed}))
    return 0


def _runners(arguments: argparse.Namespace, workload: str | None = None) -> list[str]:
    """Those of a workload, in order; of all where none is named."""
    by_default = _WORKLOADS_OF[workload] if workload else _RUNNERS
    return [*(arguments.runners or by_default), *arguments.structured]


def _peers(arguments: argparse.Namespace, model: Phi3VisionModel, folder: Path) -> list[Peer]:
    if not arguments.peer:
        return []
    checkpoint = Path(arguments.model or folder / "checkpoint")
    if not arguments.model:
        save(model, checkpoint)
        (checkpoint / PREPROCESSOR).write_text(json.dumps({"num_crops": arguments.num_crops}))  # vLLM's model reads it
    dtype = str(model.dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    return [
        Peer(name, python, checkpoint, dtype, arguments.num_crops, threads, folder / name)
        for name, python in arguments.peer
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ray_job bench engine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=64, help="of each workload; an eighth of it for `long`")
    parser.add_argument("--only", nargs="+", choices=list(MAKERS), metavar="WORKLOAD", help=", ".join(MAKERS))
    parser.add_argument("--runners", nargs="+", choices=list(_RUNNERS), help="default: by workload")
    parser.add_argument("--full-size", action="store_true", help="Phi-3-Vision's own size, 4.1 billion parameters")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a Phi-3-Vision checkpoint instead of random weights")
    parser.add_argument(
        "--peer",
        type=named_python(PEERS),
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help=f"another engine ({', '.join(PEERS)}) and the Python of an environment that has it",
    )
    parser.add_argument("--structured", nargs="+", choices=list(FORMS), default=[], help="also with a form on each row")
    parser.add_argument("--num-crops", type=int, default=4, help="most crops of a picture")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: by device")
    parser.add_argument("--threads", type=int, help="of a CPU; default: torch's")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def build_model(
    full_size: bool, dtype: torch.dtype, device: torch.device, official_tower: bool = False
) -> Phi3VisionModel:
    """Random weights. The small one keeps the crops' geometry, head width and the tower's share of the work.

    With `official_tower` it has two of the official tower's layers instead, of which the model uses one.
    """
    half = 48
    factors: dict[str, Any] = {
        "short_factor": (1.1,) * half,
        "long_factor": (4.0,) * half,
        "max_position_embeddings": 131072,
    }
    config = Phi3VisionConfig(**factors) if full_size else _small_config(official_tower, **factors)
    with torch.device("meta"):
        model = Phi3VisionModel(config)
    model = model.to_empty(device=device).to(dtype)
    with torch.no_grad():
        if full_size:  # drawing four billion normal numbers on a CPU takes minutes
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.02)
        else:
            init_weights(model, seed=0)
    return model.eval()


def _small_config(official_tower: bool, **factors: Any) -> Phi3VisionConfig:
    tower = VisionConfig(hidden_size=320, intermediate_size=1280, num_hidden_layers=6, num_attention_heads=5)
    if official_tower:
        tower = VisionConfig(num_hidden_layers=2)
    return Phi3VisionConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10 if official_tower else 12,
        num_attention_heads=8,
        num_key_value_heads=8,
        vision=tower,
        **factors,
    )


def twin(model: Phi3VisionModel) -> Phi3VisionModel:
    """Another module over the same weight tensors."""
    with torch.device("meta"):
        other = Phi3VisionModel(model.config, model.attention, model.image_mean, model.image_std)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval()


class _Bench:
    """Runs workloads over one model; the engine over the same weights as a job's actor holds them."""

    def __init__(self, model: Phi3VisionModel, num_crops: int, seed: int, shaped: Vocabulary | None = None) -> None:
        self._model = model
        self._shaped = shaped
        self._ours = cast_where_slow(twin(model))
        self._num_crops = num_crops
        self._seed = seed
        self._library = baselines.library(model)
        self.machine = measure_machine(model.config, self._ours.dtype, model.device)

    def warm_up(self, runners: Sequence[str]) -> None:
        """Runs each of them a little, so that what is made once is not measured."""
        for runner in dict.fromkeys(runners):
            self._run(runner, self._samples("long-tailed", 2, runner)[:2])

    def measure(self, workload: str, runner: str | Peer, rows: int) -> tuple[Measured, baselines.Answers]:
        """Answers every row and counts the tokens. Raises PeerError."""
        if isinstance(runner, Peer):
            return self._measure_peer(workload, runner, rows)
        samples = self._samples(workload, rows, runner)
        started_s, cpu_started_s = time.perf_counter(), time.process_time()
        answers, stats = self._run(runner, samples)
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_started_s
        new_tokens = _count_tokens(answers, samples)
        summary = None
        if stats is not None:
            summary = {**asdict(stats), "slot_occupancy": stats.slot_occupancy, "padding_share": stats.padding_share}
            ours = self._ours
            summary["shares"] = shares(ours.config, summary, ours.dtype.itemsize, self.machine)
        return Measured(workload, runner, rows, seconds, cpu_s, new_tokens, summary), answers

    def _measure_peer(self, workload: str, peer: Peer, rows: int) -> tuple[Measured, baselines.Answers]:
        samples = self._samples(workload, rows, peer.name)
        others = Workload(self._seed + 1, self._model.config.vocab_size, self._num_crops)
        result = peer.run(samples, warm_up=MAKERS["long-tailed"](others, 4))
        new_tokens = _count_tokens(result.answers, samples)
        summary = {"version": result.version, "start_up_s": result.start_up_s}
        row = Measured(workload, peer.name, rows, result.seconds, result.cpu_s, new_tokens, summary)
        return row, result.answers

    def _samples(self, workload: str, rows: int, runner: str) -> list[Sample]:
        share = runner != "no-reuse"
        samples = MAKERS[workload](Workload(self._seed, self._model.config.vocab_size, self._num_crops, share), rows)
        return with_form(samples, runner) if runner in FORMS else samples

    def _run(self, runner: str, samples: list[Sample]) -> tuple[baselines.Answers, EngineStats | None]:
        if runner == "recipe":
            return baselines.recipe(self._model, samples, self._num_crops), None
        if runner == "library":
            return self._library(samples), None
        if runner == "single":
            static = StaticEngine(PaddedPhi3Vision(self._model), VOCABULARY, max_batch_rows=1)
            return {result.key: list(result.token_ids) for result in run(static, samples)}, None
        options: dict[str, Any] = {}
        if runner == "no-reuse":
            options = {"vision_cache_bytes": 0, "prefix_sharing": False, "answer_duplicates": False}
        vocabulary = self._shaped if runner in FORMS and self._shaped else VOCABULARY
        engine = ContinuousEngine(PackedPhi3Vision(self._ours), vocabulary, **options)
        answers = {result.key: list(result.token_ids) for result in run(engine, samples)}
        return answers, engine.stats()


def _count_tokens(answers: baselines.Answers, samples: Sequence[Sample]) -> int:
    """All tokens of the answers. Every row must have been answered in full."""
    expected = {sample.key: sample.params.max_new_tokens for sample in samples}
    assert {key: len(tokens) for key, tokens in answers.items()} == expected
    return sum(expected.values())


def _print_row(last: Measured, measured: Sequence[Measured]) -> None:
    if len(measured) == 1:
        print(f"{'workload':16}{'runner':50}{'rows':>6}{'seconds':>10}{'CPU s':>9}{'rows/s':>9}{'tokens/s':>10}")
    line = f"{last.workload:16}{_DESCRIPTIONS[last.runner]:50}{last.rows:6}{last.seconds:10.1f}{last.cpu_s:9.1f}"
    print(f"{line}{last.rows_per_s:9.2f}{last.new_tokens / last.seconds:10.1f}", flush=True)
    if last.stats and last.runner in ("engine", *FORMS):
        keys = ["steps", "vision_s", "prefill_s", "decode_s", "schedule_s", "slot_occupancy", "prefix_tokens_reused"]
        keys += ["forced_tokens", "mask_s", "mask_wait_s"] if last.runner in FORMS else []
        shown = ", ".join(f"{key} {last.stats[key]:.4g}" for key in keys)
        print(f"{'':16}{shown}")
        reached = ", ".join(f"{name} {share:.0%}" for name, share in last.stats["shares"].items())
        print(f"{'':16}of what this machine can do: {reached}", flush=True)
    if last.stats and last.runner in PEERS:
        print(f"{'':16}{PEERS[last.runner]} {last.stats['version']}, start_up_s {last.stats['start_up_s']:.4g}")


def _print_workload(workload: str, measured: Sequence[Measured], alike: dict[str, int]) -> None:
    """Prints how many times as fast the engine is as each runner, and how many rows got the engine's tokens."""
    ratios = _ratios(measured).get(workload)
    if ratios:
        shown = (f"{ratio:.2f} × {runner} ({alike[runner]} rows alike)" for runner, ratio in ratios.items())
        print(f"{'':16}this engine: {', '.join(shown)}", flush=True)


def _alike(answers: dict[str, baselines.Answers]) -> dict[str, int]:
    """Rows with the engine's tokens, by runner. Random weights leave many near ties, which rounding may turn."""
    ours = answers.get("engine", {})
    return {name: sum(ours.get(key) == tokens for key, tokens in theirs.items()) for name, theirs in answers.items()}


def _report(model: Phi3VisionModel, measured: Sequence[Measured], arguments: argparse.Namespace) -> dict[str, Any]:
    device = model.device
    is_gpu = device.type == "cuda"
    return {
        "benchmark": "engine",
        "machine": torch.cuda.get_device_name(device) if is_gpu else cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_crops": arguments.num_crops,
        "seed": arguments.seed,
        "commit": commit(),
        "results": [{**asdict(each), "rows_per_s": each.rows_per_s} for each in measured],
        "times_as_fast": _ratios(measured),
    }


def _ratios(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """By workload and baseline: how many times its rows/s the engine reaches."""
    ratios: dict[str, dict[str, float]] = {}
    for ours in measured:
        if ours.runner == "engine":
            others = [each for each in measured if each.workload == ours.workload and each is not ours]
            ratios[ours.workload] = {each.runner: round(ours.rows_per_s / each.rows_per_s, 3) for each in others}
    return ratios


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The commit of the repository this runs in, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    raise SystemExit(main())
