"""Other engines over the same checkpoint and rows, each in an environment of its own.

A peer is a script that runs inside that environment. It reads `request.json`, `model/` and `pictures/` in a folder,
starts, warms up on other rows, empties its caches, answers the rows and writes `result.json` with seconds and tokens.
Pictures are handed over in HD size and crops are cut while the clock runs, by our engine as by the peer.
A peer of whole jobs is a module that does the job of a spec, and is started in its environment as ours is here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_job.models.vllm.prompts import placeholders_once
from ray_job.rows import Sample

PEERS = {"vllm": "vLLM", "openvino": "OpenVINO GenAI"}
WHOLE_PEERS = {"ray_data_llm": "Ray Data LLM over vLLM"}
_TIMEOUT_S = 3600
_ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception)(?:\(\w+\))?: .*", re.MULTILINE)  # as Python ends a traceback
_PACKAGE_ROOT = Path(__file__).parents[3]
_COMMON = {"PYTHONPATH": str(_PACKAGE_ROOT), "HF_HUB_OFFLINE": "1"}
_TCMALLOC = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))
_PLUGIN = "[vllm.general_plugins]\nray_job_bench = ray_job.models.vllm.phi3_vision:register\n"


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
    """An engine to compare with, and the Python interpreter that has it.

    Args:
        name: a key of PEERS.
        python: the interpreter of an environment with the peer, numpy, Pillow and torch.
        checkpoint: folder of the model.
        dtype: by torch's name.
        num_crops: most crops of a picture of Phi-3-Vision; None for another model, whose pictures the peer prepares.
        threads: how many cores it may use.
        folder: for the requests and answers.
    """

    name: str
    python: Path
    checkpoint: Path
    dtype: str
    num_crops: int | None
    threads: int
    folder: Path
    image_token: int | None = None  # of another model: what the peer wants in a picture's place, once

    def run(self, samples: Sequence[Sample], warm_up: Sequence[Sample]) -> PeerResult:
        """Answers every sample in full. Raises PeerError."""
        self._write(samples, warm_up)
        script = Path(__file__).parent / f"{self.name}_rows.py"
        log = self.folder / "log.txt"
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        run_logged([str(self.python), str(script), str(self.folder)], self._environment(), log)
        found = json.loads(result.read_text())
        answers = {int(key): tokens for key, tokens in found.pop("tokens").items()}
        return PeerResult(**found, answers=answers)

    def _write(self, samples: Sequence[Sample], warm_up: Sequence[Sample]) -> None:
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for stale in pictures.iterdir():
            stale.unlink()
        for picture in {picture.digest: picture for each in (*samples, *warm_up) for picture in each.pictures}.values():
            (pixels_HWC,) = picture.arrays.values()
            np.save(pictures / f"{picture.digest.hex()}.npy", pixels_HWC)
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
            "warm_up": [self._row(each) for each in warm_up],
            "rows": [self._row(each) for each in samples],
        }
        (self.folder / "request.json").write_text(json.dumps(request))

    def _row(self, sample: Sample) -> dict[str, Any]:
        """A sample as JSON."""
        ids, image_token = placeholders_once(sample.input_ids), self.image_token
        return {
            "key": sample.key,
            "input_ids": ids if image_token is None else [image_token if each < 0 else each for each in ids],
            "pictures": [picture.digest.hex() for picture in sample.pictures],
            "max_new_tokens": sample.params.max_new_tokens,
        }

    def _environment(self) -> dict[str, str]:
        if self.name == "vllm":
            return vllm_environment(self.python, self.threads, self.folder)
        return os.environ | _COMMON


def named_python(peers: Mapping[str, str]) -> Callable[[str], tuple[str, Path]]:
    """Reads NAME=PYTHON of a command line, NAME one of `peers`."""

    def parse(text: str) -> tuple[str, Path]:
        name, _, python = text.partition("=")
        if name not in peers or not python:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: NAME=PYTHON, NAME one of {', '.join(peers)}")
        return name, Path(python).absolute()

    return parse


def vllm_environment(python: Path, threads: int, folder: Path) -> dict[str, str]:
    """Variables under which vLLM in `python`'s environment knows our model; writes its plugin below `folder`."""
    plugin = folder / "plugin" / "ray_job_bench-0.dist-info"
    plugin.mkdir(parents=True, exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: ray_job_bench\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text(_PLUGIN)
    cores = sorted(os.sched_getaffinity(0))[:threads]
    preloaded = [*python.parents[1].glob("lib/libiomp5.so"), *_TCMALLOC]
    settings = {
        "PYTHONPATH": f"{_PACKAGE_ROOT}{os.pathsep}{plugin.parent}",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": ":".join(map(str, preloaded)),
        # Intel's OpenMP binds what its process forks to the first core, which may be Ray's node and all below it. vLLM
        # itself binds its worker's threads, as it is told above.
        "KMP_AFFINITY": "none",
    }
    return os.environ | _COMMON | settings


def run_logged(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Runs a command to its end, its output in `log`. Raises PeerError with the last error it printed."""
    try:
        with log.open("w") as stream:
            subprocess.run(command, stdout=stream, stderr=stream, env=environment, timeout=_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"took longer than {error.timeout:.0f} s") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerError(f"{_last_error(log) or error}") from error


def _last_error(log: Path) -> str | None:
    """The last line of the last traceback."""
    found = _ERROR.findall(log.read_text(errors="replace")) if log.exists() else []
    return found[-1].strip() if found else None
