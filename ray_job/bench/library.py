"""How fast a model of transformers runs in the engine, against the library's own `generate`, and vLLM.

    python -m ray_job bench library
    python -m ray_job bench library --rows 64 --peer vllm=/path/to/its/environment/bin/python

A LLaVA-NeXT of random weights, with a tower and a decoder as wide as those of `bench engine`; so no answer ends early.
The clock runs from decoded pictures and token ids to the last token: each side prepares the pictures itself. `generate`
gets batches of 8 rows alike in answer length. Loading and a warm-up are not counted. Runs without Ray.

Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ray_job.bench.baselines import BATCH_ROWS, Answers
from ray_job.bench.engine import VOCABULARY, commit, cpu_name
from ray_job.bench.peers.peer import Peer, PeerError, named_python
from ray_job.bench.workloads import MAKERS, Workload
from ray_job.demo.training.llava_next.folder import read_processor
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import run
from ray_job.models.auto import weights
from ray_job.models.auto.configuration import image_token_id, read_config
from ray_job.models.auto.gate import fit
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.probe_rows import probe_rows
from ray_job.models.auto.processor import LibraryProcessor
from ray_job.models.loading import model_folder
from ray_job.rows import Picture, Sample
from ray_job.spec import ModelSpec

_PEERS = {"vllm": "vLLM"}
_SIDE, _PATCH = 168, 14  # of a tile: 144 tokens, as a crop of Phi-3-Vision
_GRIDS = [[_SIDE * rows, _SIDE * cols] for rows, cols in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]
_SIDES_PX = (224, 1344)
_VOCAB = 32064
_IMAGE = "image"  # a picture as it was decoded, uint8 (H, W, 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job bench library", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer",
        type=named_python(_PEERS),
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="vllm, and the Python of an environment that has it (`.ci/vllm`)",
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_checkpoint(folder)
        found = _measured(arguments, folder, Path(scratch))
    ours = found["engine"]
    for name, each in found.items():
        each["alike"] = sum(each["answers"][key] == tokens for key, tokens in ours["answers"].items())
        each["times_as_long"] = round(each["seconds"] / ours["seconds"], 2)
        print(f"{name:10}{each['seconds']:8.1f} s  {each['times_as_long']:5.2f} × engine  {each['alike']} rows alike")
    shown = {name: {key: value for key, value in each.items() if key != "answers"} for name, each in found.items()}
    names = ("rows", "dtype", "threads", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    machine = {"machine": cpu_name(), "cpus": os.cpu_count(), "torch": torch.__version__, "commit": commit()}
    print(json.dumps({"benchmark": "library", **settings, **machine, "found": shown}))
    return 0


def write_checkpoint(folder: Path) -> None:
    """A LLaVA-NeXT of random weights with the demo's tokenizer, as the library saves it."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig
    from transformers import LlavaNextForConditionalGeneration as LlavaNext
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    demo = read_processor(model_folder(ModelSpec(path="builtin:demo-llava-next")))
    demo.image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}, image_grid_pinpoints=_GRIDS
    )
    demo.patch_size = _PATCH
    demo.save_pretrained(folder)
    tower = CLIPVisionConfig(
        image_size=_SIDE,
        patch_size=_PATCH,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=5,
    )
    decoder = LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaNextConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=demo.image_token_id,
        image_grid_pinpoints=_GRIDS,
        image_seq_length=(_SIDE // _PATCH) ** 2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlavaNext(config).save_pretrained(folder)
    name_as_published(folder / "model.safetensors")


def name_as_published(file: Path) -> None:
    """The library has come to save towers without `vision_model`; published checkpoints and vLLM have it."""
    renamed = {
        re.sub(r"vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file, {"format": "pt"})


class _Rows(Workload):
    """Rows of decoded pictures."""

    def __init__(self, seed: int, processor: LibraryProcessor, image_token: int) -> None:
        self._processor = processor
        self._image_token = image_token
        super().__init__(seed, _VOCAB, num_crops=0)

    def _picture(self, width: int | None = None, height: int | None = None) -> Picture:
        size = (height or self._rng.randint(*_SIDES_PX), width or self._rng.randint(*_SIDES_PX), 3)
        seed = self._rng.getrandbits(64)
        pixels_HWC = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        return Picture(seed.to_bytes(16), {_IMAGE: pixels_HWC})

    def _num_tokens(self, shown: Picture) -> int:
        height, width, _ = shown.arrays[_IMAGE].shape
        placeholder = self._processor.placeholder(width, height)
        assert placeholder is not None
        return placeholder.num_tokens

    def _text(self, low: int, high: int) -> list[int]:
        """Without the token that stands for a picture."""
        return [3 if each == self._image_token else each for each in super()._text(low, high)]


def _measured(arguments: argparse.Namespace, folder: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """By runner: seconds and answers."""
    processor = LibraryProcessor.from_pretrained(folder)
    token = image_token_id(read_config(folder))
    assert token is not None
    rows = MAKERS["long-tailed"](_Rows(arguments.seed, processor, token), arguments.rows)
    others = MAKERS["long-tailed"](_Rows(arguments.seed + 1, processor, token), 4)
    dtype = getattr(torch, arguments.dtype)
    found = {}
    for name, make in {"engine": _engine, "generate": _generate}.items():
        answer = make(folder, dtype, processor)
        answer(others)
        started_s = time.perf_counter()
        answers = answer(rows)
        found[name] = {"seconds": time.perf_counter() - started_s, "answers": answers}
        assert {key: len(tokens) for key, tokens in answers.items()} == {
            each.key: each.params.max_new_tokens for each in rows
        }
    for name, python in arguments.peer:
        peer = Peer(name, python, folder, arguments.dtype, None, arguments.threads, scratch / name, token)
        try:
            result = peer.run(rows, warm_up=others)
        except PeerError as error:
            print(f"{name:10}failed: {error}", flush=True)
            continue
        found[name] = {"seconds": result.seconds, "answers": result.answers, "version": result.version}
    return found


def _engine(folder: Path, dtype: torch.dtype, processor: LibraryProcessor) -> Callable[[Sequence[Sample]], Answers]:
    model = weights.load(folder, dtype=dtype)
    packed = fit(model, processor.normalization or Normalization(), probe_rows(processor))

    def answer(rows: Sequence[Sample]) -> Answers:
        images = {shown.digest: shown.arrays[_IMAGE] for row in rows for shown in row.pictures}
        arrays = {digest: processor.prepare(Image.fromarray(each)).arrays for digest, each in images.items()}
        samples = [
            replace(row, pictures=[Picture(each.digest, arrays[each.digest]) for each in row.pictures]) for row in rows
        ]
        engine = ContinuousEngine(packed, VOCABULARY)
        return {result.key: list(result.token_ids) for result in run(engine, samples)}

    return answer


def _generate(folder: Path, dtype: torch.dtype, processor: LibraryProcessor) -> Callable[[Sequence[Sample]], Answers]:
    model = weights.load(folder, dtype=dtype)
    library, token = read_processor(folder), image_token_id(model.config)
    assert token is not None

    @torch.inference_mode()
    def answer(rows: Sequence[Sample]) -> Answers:
        answers: Answers = {}
        ordered = sorted(rows, key=lambda row: (row.params.max_new_tokens, len(row.input_ids)))
        for first in range(0, len(ordered), BATCH_ROWS):
            batch = ordered[first : first + BATCH_ROWS]
            images = [Image.fromarray(shown.arrays[_IMAGE]) for row in batch for shown in row.pictures]
            longest = max(len(row.input_ids) for row in batch)
            ids_BL = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask_BL = torch.zeros_like(ids_BL)
            for place, row in enumerate(batch):
                ids = torch.tensor(row.input_ids)
                ids_BL[place, longest - len(ids) :] = torch.where(ids < 0, token, ids)
                mask_BL[place, longest - len(ids) :] = 1
            pictures = library.image_processor(images, return_tensors="pt")
            pictures["pixel_values"] = pictures["pixel_values"].to(dtype)
            tokens_BL = model.generate(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                **pictures,
                max_new_tokens=batch[-1].params.max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[:, longest:]
            for row, tokens in zip(batch, tokens_BL.tolist(), strict=True):
                answers[row.key] = tokens[: row.params.max_new_tokens]
        return answers

    return answer


if __name__ == "__main__":
    raise SystemExit(main())
