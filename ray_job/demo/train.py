"""Trains the demo's model from nothing: `python -m ray_job.demo.train --out DIR --seed 0`.

Two things make it fit into minutes on two cores. All questions about a picture are learned in one pass over
it (`batches.py`), and the vision tower is told what every patch shows (`targets.py`), first alone and then
beside the answers, so that the decoder reads features that already mean something. The schedule is counted
in steps, not minutes: the same seed gives the same model, however busy the machine is. An interrupted training
continues from `checkpoint.pt` in the output folder when the same command is run again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ray_job.demo.batches import IGNORED, Batch, Collator, TrainBatches
from ray_job.demo.card import model_card
from ray_job.demo.evaluate import accuracy, format_accuracy
from ray_job.demo.optimiser import Muon
from ray_job.demo.questions import make_split
from ray_job.demo.start import init_tower
from ray_job.demo.targets import FIELDS
from ray_job.demo.tokenizer import save_tokenizer
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import init_weights, load, save

logger = logging.getLogger(__name__)

PARTS = ("tower", "rest")
_CHECKPOINT = "checkpoint.pt"
_LOG_EVERY_S = 20
_EMPTY_PATCH_WEIGHT = 0.1
_SAVE_EVERY_STEPS = 100


@dataclass(frozen=True)
class Recipe:
    """All that decides the trained weights, beside the code."""

    seed: int = 0
    steps: int = 4250
    vision_steps: int = 1000  # the first ones train the tower alone
    num_examples: int = 16  # per step, each with all its questions
    warmup_steps: int = 40  # of each of the two stages
    muon_lr: float = 0.015
    adam_lr: float = 2e-3
    tower_lr_scale: float = 0.3  # of the tower beside the answers, once it has been trained alone
    weight_decay: float = 0.05
    patch_loss_weight: float = 1.0
    average_decay: float = 0.998  # of the running average of the weights, which is what is saved

    def is_vision_only(self, step: int) -> bool:
        """Whether a step belongs to the first stage."""
        return step < self.vision_steps

    def lr_scale(self, step: int) -> float:
        """In each stage a linear warm-up, then a cosine down to 2 %."""
        first, last = (0, self.vision_steps) if self.is_vision_only(step) else (self.vision_steps, self.steps)
        step -= first
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, last - first - self.warmup_steps)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class Progress:
    """Sums since the last log line."""

    steps: int = 0
    answer_loss: float = 0.0
    patch_loss: float = 0.0
    tokens_right: int = 0
    tokens: int = 0


class PatchHeads(nn.Module):
    """Reads what a patch shows off the tower's features. Thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(FIELDS.values()))

    def loss(self, patches_NPV: Tensor, targets_NP4: Tensor) -> Tensor:
        """Cross-entropies of all label fields, summed; patches with something on them count as much as all."""
        logits_XF = self.out(self.norm(patches_NPV)).flatten(0, 1)
        targets_X4 = targets_NP4.flatten(0, 1)
        weights_X = torch.where(targets_X4[:, 0] > 0, 1.0, _EMPTY_PATCH_WEIGHT)
        weights_X = weights_X / weights_X.sum()
        fields = enumerate(logits_XF.split(list(FIELDS.values()), -1))
        losses = [F.cross_entropy(x, targets_X4[:, number], reduction="none") @ weights_X for number, x in fields]
        return torch.stack(losses).sum()


class Trainer:
    """Model, running average and optimisers; one `step` per item of `TrainBatches`."""

    def __init__(self, config: Phi3VisionConfig, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = Phi3VisionModel(config)
        init_weights(self.model, recipe.seed)
        init_tower(self.model.model.vision_embed_tokens.tower, config.vision)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        torch.manual_seed(recipe.seed)
        self.heads = PatchHeads(config.vision.hidden_size)
        self.muon = Muon(momentum=0.95, weight_decay=recipe.weight_decay)
        groups = parameter_groups(self.model)
        groups["tower", False] += [(f"heads.{name}", weight) for name, weight in self.heads.named_parameters()]
        self.groups = groups
        self.adam = torch.optim.AdamW(
            [{"params": [weight for _, weight in groups[part, False]]} for part in PARTS],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.steps_done = 0
        self.progress = Progress()

    def step(self, batch: Batch) -> None:
        """One update."""
        is_vision_only = self.recipe.is_vision_only(self.steps_done)
        loss = self._loss(batch, is_vision_only)
        if loss.requires_grad:
            torch.autograd.backward(loss)
            self._update()
        self.steps_done += 1
        self.progress.steps += 1

    def state(self) -> dict[str, object]:
        """All that a continued training needs."""
        modules = {name: getattr(self, name).state_dict() for name in ("model", "average", "heads", "adam")}
        return {**modules, "muon": self.muon.buffers, "steps_done": self.steps_done, "recipe": self.recipe_dict()}

    def restore(self, state: dict[str, object]) -> None:
        """Takes back a `state`. Raises ValueError if it is of another recipe."""
        if state["recipe"] != self.recipe_dict():
            raise ValueError("the checkpoint is of another recipe; give another --out, or delete checkpoint.pt")
        for name in ("model", "average", "heads", "adam"):
            getattr(self, name).load_state_dict(state[name])
        buffers, steps_done = state["muon"], state["steps_done"]
        assert isinstance(buffers, dict)
        assert isinstance(steps_done, int)
        self.muon.buffers, self.steps_done = buffers, steps_done

    def recipe_dict(self) -> dict[str, object]:
        """The recipe with plain values, which `torch.load` reads without running code."""
        return dataclasses.asdict(self.recipe)

    def _loss(self, batch: Batch, is_vision_only: bool) -> Tensor:
        pictures = self.model.model.vision_embed_tokens
        loss, rows = torch.zeros(()), list[Tensor]()
        if len(batch.crops_N3CC):
            patches_NPV = pictures.tower(batch.crops_N3CC)
            patch_loss = self.heads.loss(patches_NPV, batch.targets_NP4)
            self.progress.patch_loss += patch_loss.item()
            loss = patch_loss * self.recipe.patch_loss_weight
            # The rest of PictureEmbedding.forward, whose patches the line above needed.
            merged = torch.split(pictures.merge(patches_NPV), [1 + rows * cols for rows, cols in batch.sizes])
            rows = [pictures.arrange(m, *size) for m, size in zip(merged, batch.sizes, strict=True)]
        if is_vision_only:
            return loss
        features_TD = pictures.img_projection(torch.cat(rows)) if rows else None
        return loss + self._answer_loss(batch, features_TD)

    def _answer_loss(self, batch: Batch, features_TD: Tensor | None) -> Tensor:
        """Cross-entropy of the answers' tokens, `<|end|>` included."""
        embeds_BLD = self.model.model.embed_tokens(batch.ids_BL.clamp_min(0))
        if features_TD is not None:
            places_T = (batch.ids_BL.flatten() < 0).nonzero()[:, 0]
            embeds_BLD = embeds_BLD.flatten(0, 1).index_copy(0, places_T, features_TD).view_as(embeds_BLD)
        hidden_BLD = self.model.hidden_states(
            embeds_BLD,
            position_ids_BL=batch.positions_BL,
            is_long_B=torch.zeros(len(embeds_BLD), dtype=torch.bool),
            mask_BHLL=batch.attention_mask(),
        )
        is_answer_BL = batch.labels_BL != IGNORED
        logits_XV, labels_X = self.model.lm_head(hidden_BLD[is_answer_BL]), batch.labels_BL[is_answer_BL]
        loss = F.cross_entropy(logits_XV, labels_X)
        self.progress.answer_loss += loss.item() * len(labels_X)
        self.progress.tokens += len(labels_X)
        self.progress.tokens_right += int((logits_XV.argmax(-1) == labels_X).sum())
        return loss

    def _update(self) -> None:
        scale = self.recipe.lr_scale(self.steps_done)
        for part, adam_group in zip(PARTS, self.adam.param_groups, strict=True):
            is_slow = part == "tower" and not self.recipe.is_vision_only(self.steps_done)
            part_scale = scale * (self.recipe.tower_lr_scale if is_slow else 1.0)
            nn.utils.clip_grad_norm_(adam_group["params"], 1.0)
            adam_group["lr"] = self.recipe.adam_lr * part_scale
            self.muon.step(self.groups[part, True], self.recipe.muon_lr * part_scale)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.heads.zero_grad(set_to_none=True)
        decay = min(self.recipe.average_decay, (self.steps_done + 1) / (self.steps_done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


def parameter_groups(model: nn.Module) -> dict[tuple[str, bool], list[tuple[str, nn.Parameter]]]:
    """Named parameters by part and by whether they are the layers' matrices.

    The others are embeddings, the head, norms, biases and the patch convolution.
    """
    groups: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for part, is_matrix in itertools.product(PARTS, (True, False)):
        groups[part, is_matrix] = []
    for name, parameter in model.named_parameters():
        part = "tower" if "img_processor" in name else "rest"
        is_matrix = parameter.ndim == 2 and ("layers." in name or "img_projection" in name)
        groups[part, is_matrix].append((name, parameter))
    return groups


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


def train(out: Path, recipe: Recipe, eval_every: int = 500) -> None:
    """Trains, or continues, and leaves a complete model folder in `out`."""
    started_s, cpu_s = time.monotonic(), time.process_time()
    token_ids = save_tokenizer(out)
    config = model_config(token_ids)
    config.save_pretrained(out)
    processor = Phi3VisionProcessor.from_pretrained(out)
    trainer = Trainer(config, recipe)
    if (out / _CHECKPOINT).is_file():
        trainer.restore(torch.load(out / _CHECKPOINT, weights_only=True))
        logger.info("continuing after step %d", trainer.steps_done)
    collator = Collator(processor, config.vision.image_size // config.vision.patch_size)
    data = TrainBatches(
        collator, recipe.seed, trainer.steps_done, recipe.steps, recipe.num_examples, recipe.vision_steps
    )
    logged_s = time.monotonic()
    for batch in DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8):
        trainer.step(batch)
        if time.monotonic() - logged_s > _LOG_EVERY_S:
            logged_s = time.monotonic()
            _log(trainer, logged_s - started_s)
        if trainer.steps_done % _SAVE_EVERY_STEPS == 0:
            _save_checkpoint(trainer, out)
        if trainer.steps_done % eval_every == 0:
            logger.info("%s", format_accuracy(accuracy(trainer.average, processor, make_split("eval", 60))))
    _finish(trainer, out, time.monotonic() - started_s, time.process_time() - cpu_s)


def _finish(trainer: Trainer, out: Path, wall_s: float, cpu_s: float) -> None:
    """Saves the averaged weights in bfloat16, reads them back and measures what was saved."""
    save(copy.deepcopy(trainer.average).to(torch.bfloat16), out)
    model = load(out, dtype=torch.float32)
    scores = accuracy(model, Phi3VisionProcessor.from_pretrained(out), make_split("eval", 500))
    logger.info("%s", format_accuracy(scores))
    logger.info("trained in %.0f s, %.0f s of CPU time", wall_s, cpu_s)
    card = model_card(trainer.recipe_dict(), trainer.average, scores, wall_s, cpu_s)
    (out / "README.md").write_text(card, encoding="utf-8")
    (out / _CHECKPOINT).unlink(missing_ok=True)


def _log(trainer: Trainer, elapsed_s: float) -> None:
    progress, trainer.progress = trainer.progress, Progress()
    logger.info(
        "%5.0f s  step %d/%d  answers %.4f  patches %.4f  tokens right %.4f  %.2f s/step  CPU %.0f s",
        elapsed_s,
        trainer.steps_done,
        trainer.recipe.steps,
        progress.answer_loss / max(1, progress.tokens),
        progress.patch_loss / progress.steps,
        progress.tokens_right / max(1, progress.tokens),
        _LOG_EVERY_S / progress.steps,
        time.process_time(),
    )


def _save_checkpoint(trainer: Trainer, out: Path) -> None:
    unfinished = out / f".{_CHECKPOINT}.tmp"
    torch.save(trainer.state(), unfinished)
    unfinished.replace(out / _CHECKPOINT)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; made if need be")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer train faster and worse")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(arguments.out, Recipe(seed=arguments.seed, steps=arguments.steps))


if __name__ == "__main__":
    main()
