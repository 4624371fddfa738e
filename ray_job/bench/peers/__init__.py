"""Other engines over the same checkpoint and rows, each in an environment of its own.

A peer is a script that runs inside that environment. It reads `request.json`, `model/` and `pictures/` in a folder,
starts, warms up on other rows, empties its caches, answers the rows and writes `result.json` with seconds and tokens.
Pictures are handed over in HD size and crops are cut while the clock runs, by our engine as by the peer.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_job.rows import Sample

PEERS = {"vllm": "vLLM", "openvino": "OpenVINO GenAI"}
_TIMEOUT_S = 600
_PACKAGE_ROOT = Path(__file__).parents[3]


class PeerError(Exception):
    """A peer gave no answers; the message says why."""


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What a peer did. Its start-up is not in `seconds`."""

    seconds: float
    cpu_s: float
    start_up_s: float
    version: str
    answers: dict[int, list[int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer and the Python that has it.

    Args:
        name: a key of PEERS.
        python: the interpreter of an environment with the peer, numpy, Pillow and torch.
        checkpoint: folder of a Phi-3-Vision model.
        dtype: by torch's name.
        num_crops: most crops of a picture.
        threads: how many cores it may use.
        folder: for the requests and answers.
    """

    name: str
    python: Path
    checkpoint: Path
    dtype: str
    num_crops: int
    threads: int
    folder: Path

    def run(self, samples: Sequence[Sample], warm_up: Sequence[Sample]) -> PeerResult:
        """Answers every sample in full. Raises PeerError."""
        self._write(samples, warm_up)
        script = Path(__file__).parent / f"{self.name}_rows.py"
        log = self.folder / "log.txt"
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        try:
            with log.open("w") as stream:
                command = [str(self.python), str(script), str(self.folder)]
                subprocess.run(
                    command, stdout=stream, stderr=stream, env=self._environment(), timeout=_TIMEOUT_S, check=True
                )
            found = json.loads(result.read_text())
        except (OSError, subprocess.SubprocessError) as error:
            raise PeerError(f"{_last_error(log) or error}") from error
        answers = {int(key): tokens for key, tokens in found.pop("tokens").items()}
        return PeerResult(**found, answers=answers)

    def _write(self, samples: Sequence[Sample], warm_up: Sequence[Sample]) -> None:
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for stale in pictures.iterdir():
            stale.unlink()
        for picture in {picture.digest: picture for each in (*samples, *warm_up) for picture in each.pictures}.values():
            np.save(pictures / f"{picture.digest.hex()}.npy", picture.pixels_HWC)
        model = self.folder / "model"
        if not model.exists():
            model.symlink_to(self.checkpoint.resolve(), target_is_directory=True)
        longest = max(len(each.input_ids) + each.params.max_new_tokens for each in (*samples, *warm_up))
        request = {
            "dtype": self.dtype,
            "num_crops": self.num_crops,
            "threads": self.threads,
            # vLLM rotates every row by the long factors where it may become longer than 4096.
            "max_model_len": longest if longest > 4096 else 4096,
            "max_num_seqs": 32,
            "max_pictures": max(len(each.pictures) for each in samples),
            "warm_up": [_row(each) for each in warm_up],
            "rows": [_row(each) for each in samples],
        }
        (self.folder / "request.json").write_text(json.dumps(request))

    def _environment(self) -> dict[str, str]:
        common = {"PYTHONPATH": str(_PACKAGE_ROOT), "HF_HUB_OFFLINE": "1"}
        return os.environ | common | (self._vllm_environment() if self.name == "vllm" else {})

    def _vllm_environment(self) -> dict[str, str]:
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        preloaded = [*self.python.parents[1].glob("lib/libiomp5.so"), *_TCMALLOC]
        return {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": ":".join(map(str, preloaded)),
        }


_TCMALLOC = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))


def _row(sample: Sample) -> dict[str, Any]:
    """A sample as JSON, each picture's run of placeholders as one."""
    ids = sample.input_ids
    kept = [token for place, token in enumerate(ids) if token >= 0 or place == 0 or ids[place - 1] != token]
    pictures = [picture.digest.hex() for picture in sample.pictures]
    return {
        "key": sample.key,
        "input_ids": kept,
        "pictures": pictures,
        "max_new_tokens": sample.params.max_new_tokens,
    }


def _last_error(log: Path) -> str | None:
    """The last line that looks like an exception's message."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if "Error" in line), None)
