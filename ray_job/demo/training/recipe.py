"""The recipe of a training: all that decides the trained weights, beside the code and the architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Defaults are those of the demo's own model."""

    seed: int = 0
    steps: int = 6800
    vision_steps: int = 1000  # the first ones train the tower alone
    num_examples: int = 16  # per step, each with all its questions
    warmup_steps: int = 40  # of each of the two stages
    muon_lr: float = 0.015
    adam_lr: float = 2e-3
    tower_lr_scale: float = 0.3  # of the tower beside the answers, once it has been trained alone
    weight_decay: float = 0.05
    token_loss_scale: float = 0.5  # of what and where a picture's token is, beside the answers
    token_loss_layer: int = 1  # the decoder layer whose output is asked, from 0
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
