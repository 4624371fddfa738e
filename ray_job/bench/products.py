"""How fast a linear layer's product is: as `nn.Linear` computes it, and over a packed weight (`models/projection.py`).

    python -m ray_job bench products --threads 1

The two take turns, and the least CPU time of some calls counts, so that a busy machine disturbs little; of several
threads all their time counts. Runs without Ray.

Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ray_job.bench.engine import commit, cpu_name
from ray_job.models.projection import Packing

_SHAPES = [(768, 320), (4096, 768), (768, 2048), (4096, 1024), (1024, 4096)]  # of the models of the other benchmarks
_ROWS = [1, 8, 32, 256, 1024]
_MIN_CALLS = 7
_MIN_S = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_job bench products", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs="+", type=int, default=_ROWS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    found = []
    print(f"{'dtype':10}{'weight':>13}{'rows':>6}{'nn.Linear':>11}{'packed':>8}  GFLOP/s of one core")
    for dtype in arguments.dtype:
        for shape in _SHAPES:
            for num_rows in arguments.rows:
                plain, packed = measure(shape, num_rows, getattr(torch, dtype))
                print(f"{dtype:10}{shape[0]:6} ×{shape[1]:5}{num_rows:6}{plain:11.0f}{packed:8.0f}", flush=True)
                found.append({"dtype": dtype, "weight": shape, "rows": num_rows, "linear": plain, "packed": packed})
    machine = {"machine": cpu_name(), "cpus": os.cpu_count(), "torch": torch.__version__, "commit": commit()}
    print(json.dumps({"benchmark": "products", "threads": arguments.threads, **machine, "gflops_per_s": found}))
    return 0


@torch.inference_mode()
def measure(shape: tuple[int, int], num_rows: int, dtype: torch.dtype) -> tuple[float, float]:
    """Operations in a nanosecond of CPU time: as `nn.Linear` computes, and packed where that is possible."""
    out_features, in_features = shape
    layer = nn.Linear(in_features, out_features, bias=False).to(dtype)
    module = nn.Sequential(layer)
    Packing(module, dtype).put_in()
    x = torch.randn(num_rows, in_features).to(dtype)
    least_s = _least_s([lambda: layer(x), lambda: module(x)])
    plain, packed = (2 * num_rows * in_features * out_features / seconds / 1e9 for seconds in least_s)
    return plain, packed


def _least_s(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The least CPU time of each, which take turns."""
    least_s = [float("inf")] * len(calls)
    started_s, count = time.process_time(), 0
    while count < _MIN_CALLS or time.process_time() - started_s < _MIN_S:
        for index, call in enumerate(calls):
            before_s = time.process_time()
            call()
            least_s[index] = min(least_s[index], time.process_time() - before_s)
        count += 1
    return least_s


if __name__ == "__main__":
    raise SystemExit(main())
