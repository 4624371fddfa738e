"""Trains the demo's model from nothing: `python -m ray_job.demo.training.train --out DIR --seed 0`.

Three things make it fit into minutes on two cores. All questions about a picture are learned in one pass over it
(`batches.py`). The vision tower is told what every patch shows, first alone and then beside the answers, and the
decoder what every picture token shows and where it is (`heads.py`), so that answers become look-ups. And each core
has a process of its own, with its share of every step's examples (`parallel.py`).

The schedule is counted in steps, not minutes: the same seed gives the same model up to rounding, however busy the
machine is and however many processes work. An interrupted training continues from `checkpoint.pt` in the output
folder when the same command is run again.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ray_job.demo.questions import make_split
from ray_job.demo.training.batches import Collator, TrainBatches
from ray_job.demo.training.card import Effort, model_card
from ray_job.demo.training.evaluate import accuracy, format_accuracy
from ray_job.demo.training.parallel import Processes, run_in_processes
from ray_job.demo.training.tokenizer import save_tokenizer
from ray_job.demo.training.trainer import Progress, Recipe, Trainer
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load, save

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.pt"
_LOG_EVERY_S = 20
_SAVE_EVERY_STEPS = 100
_EVAL_EVERY_STEPS = 500


def model_config(token_ids: dict[str, int]) -> Phi3VisionConfig:
    """Phi-3-Vision's architecture in small: 64-pixel crops of 4×4 tokens, a 3+1-layer tower, 4 decoder layers."""
    hidden_size, num_heads = 128, 4
    half = hidden_size // num_heads // 2
    return Phi3VisionConfig(
        vocab_size=max(token_ids.values()) + 1,
        hidden_size=hidden_size,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        short_factor=tuple(1.0 + number / half for number in range(half)),
        long_factor=tuple(1.0 + 31.0 * number / half for number in range(half)),
        sliding_window=131072,
        eos_token_id=2,
        pad_token_id=token_ids["<|endoftext|>"],
        initializer_range=0.05,
        vision=VisionConfig(
            image_size=64,
            patch_size=8,
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=4,
        ),
    )


def train(out: Path, recipe: Recipe, num_processes: int, num_measured: int = 500) -> None:
    """Trains, or continues, and leaves a complete model folder in `out`, measured on `num_measured` examples.

    Raises ValueError if there is a checkpoint of another recipe in `out`.
    """
    config = model_config(save_tokenizer(out))
    config.save_pretrained(out)
    run_in_processes(num_processes, _train, out, recipe, num_measured)


def _train(processes: Processes, out: Path, recipe: Recipe, num_measured: int) -> None:
    """One process's work. The first one writes files and the log."""
    is_first = processes.rank == 0
    logging.basicConfig(level=logging.INFO if is_first else logging.WARNING, format="%(message)s")
    started_s = time.monotonic()
    config, processor = Phi3VisionConfig.from_pretrained(out), Phi3VisionProcessor.from_pretrained(out)
    trainer = Trainer(config, recipe, processes)
    if (out / _CHECKPOINT).is_file():
        trainer.restore(torch.load(out / _CHECKPOINT, weights_only=True))
        logger.info("continuing after step %d", trainer.steps_done)
    first_step = trainer.steps_done
    collator = Collator(processor, config.vision.image_size // config.vision.patch_size)
    data = TrainBatches(
        collator, recipe.seed, first_step, recipe.steps, recipe.num_examples, recipe.vision_steps, processes
    )
    logged_s = started_s
    for batch in DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8):
        trainer.step(batch)
        if not is_first:
            continue
        if time.monotonic() - logged_s > _LOG_EVERY_S:
            _log(trainer, time.monotonic() - started_s, time.monotonic() - logged_s)
            logged_s = time.monotonic()
        if trainer.steps_done % _SAVE_EVERY_STEPS == 0:
            _save_checkpoint(trainer, out)
        if trainer.steps_done % _EVAL_EVERY_STEPS == 0:
            logger.info("%s", format_accuracy(accuracy(trainer.average, processor, make_split("eval", 60))))
    cpu_s = processes.sum(torch.tensor(sum(os.times()[:4]), dtype=torch.float64)).item()  # with the data workers'
    if is_first:
        _finish(trainer, out, Effort(processes.count, first_step, time.monotonic() - started_s, cpu_s), num_measured)


def _finish(trainer: Trainer, out: Path, effort: Effort, num_measured: int) -> None:
    """Saves the averaged weights in bfloat16, reads them back and measures what was saved."""
    save(copy.deepcopy(trainer.average).to(torch.bfloat16), out)
    model = load(out, dtype=torch.float32)
    scores = accuracy(model, Phi3VisionProcessor.from_pretrained(out), make_split("eval", num_measured))
    logger.info("%s", format_accuracy(scores))
    logger.info("trained in %.0f s, %.0f s of CPU time", effort.wall_s, effort.cpu_s)
    card = model_card(trainer.recipe_dict(), trainer.average, scores, num_measured, effort)
    (out / "README.md").write_text(card, encoding="utf-8")
    (out / _CHECKPOINT).unlink(missing_ok=True)


def _log(trainer: Trainer, elapsed_s: float, since_s: float) -> None:
    progress, trainer.progress = trainer.progress, Progress()
    logger.info(
        "%5.0f s  step %d/%d  %s  %.2f s/step  CPU %.0f s",
        elapsed_s,
        trainer.steps_done,
        trainer.recipe.steps,
        "  ".join(f"{name} {total / progress.steps:.4f}" for name, total in progress.losses.items()),
        since_s / progress.steps,
        time.process_time(),
    )


def _save_checkpoint(trainer: Trainer, out: Path) -> None:
    unfinished = out / f".{_CHECKPOINT}.tmp"
    torch.save(trainer.state(), unfinished)
    unfinished.replace(out / _CHECKPOINT)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job.demo.training.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; made if need be")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer train faster and worse")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="that share every step's examples"
    )
    arguments = parser.parse_args(argv)
    recipe = Recipe(seed=arguments.seed, steps=arguments.steps)
    if not 1 <= arguments.processes <= recipe.num_examples:
        parser.error(f"--processes is {arguments.processes}; allowed: 1 to {recipe.num_examples}, a step's examples")
    train(arguments.out, recipe, arguments.processes)


if __name__ == "__main__":
    main()
