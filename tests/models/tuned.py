"""Adapters with random weights, as `peft` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def tune(model: nn.Module, config: Any, seed: int = 5) -> nn.Module:
    """The model with a live adapter in it, in place: what training would leave, not what it starts from."""
    import peft

    config.inference_mode = True
    tuned = peft.PeftModel(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if ".default" in name:
                noise = torch.empty(parameter.shape).normal_(0, 0.1, generator=generator)
                is_scale = "magnitude" in name or "ia3" in name or "modules_to_save" in name
                parameter.copy_(parameter * (1 + noise) if is_scale else noise)
    return tuned.eval()


def save_adapter(model: nn.Module, config: Any, folder: Path, seed: int = 5) -> Path:
    """The folder of an adapter that was trained on this model, which has it live afterwards."""
    tune(model, config, seed).save_pretrained(str(folder))
    return folder
