"""Trains the demo's model from nothing: `python -m ray_job.demo.training.train --out DIR --seed 0`.

With `--architecture` it trains another architecture on the same questions (`choosing.py`).

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
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ray_job.demo.questions import make_split
from ray_job.demo.training.architecture import Architecture
from ray_job.demo.training.batches import Collator, TrainBatches
from ray_job.demo.training.card import Effort, model_card
from ray_job.demo.training.choosing import ARCHITECTURES, architecture
from ray_job.demo.training.evaluate import accuracy, format_accuracy
from ray_job.demo.training.parallel import Processes, run_in_processes
from ray_job.demo.training.recipe import Recipe
from ray_job.demo.training.trainer import Progress, Trainer

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.pt"
_LOG_EVERY_S = 20
_SAVE_EVERY_STEPS = 100
_EVAL_EVERY_STEPS = 500


def train(
    out: Path, recipe: Recipe, num_processes: int, num_measured: int = 500, architecture_name: str = ARCHITECTURES[0]
) -> None:
    """Trains, or continues, and leaves a complete model folder in `out`, measured on `num_measured` examples.

    Raises ValueError if there is a checkpoint of another recipe in `out`.
    """
    architecture(architecture_name).write_folder(out)
    run_in_processes(num_processes, _train, out, recipe, num_measured, architecture_name)


def _train(processes: Processes, out: Path, recipe: Recipe, num_measured: int, architecture_name: str) -> None:
    """One process's work. The first one writes files and the log."""
    is_first = processes.rank == 0
    logging.basicConfig(level=logging.INFO if is_first else logging.WARNING, format="%(message)s")
    started_s = time.monotonic()
    learned = architecture(architecture_name)
    trainer = Trainer(learned.network(out, recipe.seed), recipe, processes)
    if (out / _CHECKPOINT).is_file():
        trainer.restore(torch.load(out / _CHECKPOINT, weights_only=True))
        logger.info("continuing after step %d", trainer.steps_done)
    first_step = trainer.steps_done
    collator = Collator(learned.preparation(out))
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
            scores = accuracy(learned.answer(out, trainer.average), make_split("eval", 60))
            logger.info("%s", format_accuracy(scores))
    cpu_s = processes.sum(torch.tensor(sum(os.times()[:4]), dtype=torch.float64)).item()  # with the data workers'
    if is_first:
        effort = Effort(processes.count, first_step, time.monotonic() - started_s, cpu_s)
        _finish(learned, trainer, out, effort, num_measured)


def _finish(learned: Architecture, trainer: Trainer, out: Path, effort: Effort, num_measured: int) -> None:
    """Saves the averaged weights in bfloat16, reads them back and measures what was saved."""
    learned.save(trainer.average, out)
    scores = accuracy(learned.answer(out), make_split("eval", num_measured))
    logger.info("%s", format_accuracy(scores))
    logger.info("trained in %.0f s, %.0f s of CPU time", effort.wall_s, effort.cpu_s)
    card = model_card(learned, trainer.recipe_dict(), trainer.average, scores, num_measured, effort)
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
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=ARCHITECTURES[0])
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, help="fewer train faster and worse; by default as the architecture needs")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="that share every step's examples"
    )
    arguments = parser.parse_args(argv)
    recipe = dataclasses.replace(architecture(arguments.architecture).recipe, seed=arguments.seed)
    if arguments.steps is not None:
        recipe = dataclasses.replace(recipe, steps=arguments.steps)
    if not 1 <= arguments.processes <= recipe.num_examples:
        parser.error(f"--processes is {arguments.processes}; allowed: 1 to {recipe.num_examples}, a step's examples")
    train(arguments.out, recipe, arguments.processes, architecture_name=arguments.architecture)


if __name__ == "__main__":
    main()
