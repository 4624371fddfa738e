"""The trainer of any `Network`: its losses, one step, and a state it can continue from.

Knows nothing of folders, time or the command line (`train.py`), nor of where batches come from (`batches.py`).

Shapes: as in `batches.py`; V tower width; D decoder width; T tokens of all pictures; X answer tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_job.demo.training.architecture import Network
from ray_job.demo.training.batches import Batch
from ray_job.demo.training.heads import Loss, PatchHeads, TokenHeads, token_targets
from ray_job.demo.training.optimiser import Muon
from ray_job.demo.training.parallel import ALONE, Processes
from ray_job.demo.training.recipe import Recipe
from ray_job.demo.training.targets import IGNORED

PARTS = ("tower", "rest")
LOSSES = ("patches", "answers", "token_what", "token_where")


@dataclass
class Progress:
    """Steps, and the sums of each loss's means, since the last log line."""

    steps: int = 0
    losses: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))


class Trainer:
    """Model, running average and optimisers; one `step` per item of `TrainBatches`.

    Of several processes each has a trainer, and all are the same after every step.
    """

    def __init__(self, network: Network, recipe: Recipe, processes: Processes = ALONE) -> None:
        self.network, self.recipe, self.processes = network, recipe, processes
        self.model = network.module
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        torch.manual_seed(recipe.seed)
        self.patch_heads = PatchHeads(network.tower_width)
        self.token_heads = TokenHeads(network.decoder_width, network.patches_per_token)
        self._half_way = torch.empty(0)
        network.decoder_layers[recipe.token_loss_layer].register_forward_hook(self._keep_half_way)
        self.muon = Muon(momentum=0.95, weight_decay=recipe.weight_decay, processes=processes)
        self.groups = parameter_groups(network)
        self.groups["tower", False] += _named(self.patch_heads, "patch_heads")
        self.groups["rest", False] += _named(self.token_heads, "token_heads")
        self.parameters = [weight for group in self.groups.values() for _, weight in group]
        self.adam = torch.optim.AdamW(
            [{"params": [weight for _, weight in self.groups[part, False]]} for part in PARTS],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.steps_done = 0
        self.progress = Progress()

    def step(self, batch: Batch) -> None:
        """One update, on the examples of all processes."""
        losses = self._losses(batch, self.recipe.is_vision_only(self.steps_done))
        total = self._mean_over_processes(losses)
        if total.requires_grad:
            torch.autograd.backward(total)
        self.processes.sum_gradients(self.parameters)
        self._update()
        self.steps_done += 1
        self.progress.steps += 1

    def state(self) -> dict[str, object]:
        """All that a continued training needs."""
        modules = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        return {**modules, "muon": self.muon.buffers, "steps_done": self.steps_done, "recipe": self.recipe_dict()}

    def restore(self, state: dict[str, object]) -> None:
        """Takes back a `state`. Raises ValueError if it is of another recipe."""
        if state["recipe"] != self.recipe_dict():
            raise ValueError("the checkpoint is of another recipe; give another --out, or delete checkpoint.pt")
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        buffers, steps_done = state["muon"], state["steps_done"]
        assert isinstance(buffers, dict)
        assert isinstance(steps_done, int)
        self.muon.buffers, self.steps_done = buffers, steps_done

    def recipe_dict(self) -> dict[str, object]:
        """The recipe with plain values, which `torch.load` reads without running code."""
        return dataclasses.asdict(self.recipe)

    def _mean_over_processes(self, losses: dict[str, Loss]) -> Tensor:
        """This process's part of the loss: the parts of all processes add up to means over all their examples."""
        own = [(losses[name].sum.item(), losses[name].weight) if name in losses else (0.0, 0.0) for name in LOSSES]
        own_K2 = torch.tensor(own, dtype=torch.float32)
        sums_K2 = self.processes.sum(own_K2)
        total = torch.zeros(())
        for name, (loss_sum, weight) in zip(LOSSES, sums_K2.tolist(), strict=True):
            self.progress.losses[name] += loss_sum / max(weight, 1.0)
            if name in losses:
                scale = self.recipe.token_loss_scale if name.startswith("token") else 1.0
                total = total + losses[name].sum * (scale / max(weight, 1.0))
        return total

    def _losses(self, batch: Batch, is_vision_only: bool) -> dict[str, Loss]:
        """Those of `LOSSES` that the batch has."""
        losses, features_TD = dict[str, Loss](), None
        if len(batch.crops_N3CC):
            patches_NPV = self.network.patches(batch.crops_N3CC)
            losses["patches"] = self.patch_heads.loss(patches_NPV, batch.targets_NP4)
            if batch.sizes and not is_vision_only:
                features_TD = self.network.features(patches_NPV[: self._num_asked(batch)], batch.sizes)
        if is_vision_only or not len(batch.ids_BL):
            return losses
        return losses | self._decoder_losses(batch, features_TD)

    def _decoder_losses(self, batch: Batch, features_TD: Tensor | None) -> dict[str, Loss]:
        """Of the answers' tokens, `<|end|>` included, and of the pictures' tokens half way up."""
        embeds_BLD = self.network.embed(batch.ids_BL.clamp_min(0))
        places_T = (batch.ids_BL.flatten() < 0).nonzero()[:, 0]
        if features_TD is not None:
            embeds_BLD = embeds_BLD.flatten(0, 1).index_copy(0, places_T, features_TD).view_as(embeds_BLD)
        hidden_BLD, half_way_BLD = self._through_decoder(embeds_BLD, batch)
        is_answer_BL = batch.labels_BL != IGNORED
        logits_XV, labels_X = self.network.logits(hidden_BLD[is_answer_BL]), batch.labels_BL[is_answer_BL]
        losses = {"answers": Loss(F.cross_entropy(logits_XV, labels_X, reduction="sum"), len(labels_X))}
        if features_TD is not None:
            numbers_T = -1 - batch.ids_BL.flatten()[places_T]
            labels_TX = self.network.token_labels(batch.targets_NP4[: self._num_asked(batch)], batch.sizes)
            targets = token_targets(labels_TX, numbers_T)
            half_way_TD = half_way_BLD.flatten(0, 1)[places_T]
            losses["token_what"], losses["token_where"] = self.token_heads.losses(half_way_TD, *targets)
        return losses

    def _through_decoder(self, embeds_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states at the end and half way up, some rows at a time."""
        num_rows, length, _ = embeds_BLD.shape
        mask_B1LL, lengths_B = batch.attention_mask(), (batch.segments_BL >= 0).sum(1)
        last, half_way = list[Tensor](), list[Tensor]()
        at_once = self.network.rows_at_once or num_rows
        for first in range(0, num_rows, at_once):
            rows = slice(first, first + at_once)
            width = int(lengths_B[rows].max())
            own = embeds_BLD[rows, :width], batch.positions_BL[rows, :width], mask_B1LL[rows, :, :width, :width]
            padding = (0, 0, 0, length - width)
            last.append(F.pad(self.network.hidden_states(*own), padding))
            half_way.append(F.pad(self._half_way, padding))
        return torch.cat(last), torch.cat(half_way)

    def _num_asked(self, batch: Batch) -> int:
        """Crops of the pictures in the rows, which come first."""
        return sum(map(self.network.num_crops, batch.sizes))

    def _keep_half_way(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self._half_way = output

    def _update(self) -> None:
        scale = self.recipe.lr_scale(self.steps_done)
        for part, adam_group in zip(PARTS, self.adam.param_groups, strict=True):
            is_slow = part == "tower" and not self.recipe.is_vision_only(self.steps_done)
            part_scale = scale * (self.recipe.tower_lr_scale if is_slow else 1.0)
            nn.utils.clip_grad_norm_(adam_group["params"], 1.0)
            adam_group["lr"] = self.recipe.adam_lr * part_scale
            self.muon.step(self.groups[part, True], self.recipe.muon_lr * part_scale)
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None
        decay = min(self.recipe.average_decay, (self.steps_done + 1) / (self.steps_done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


_STATEFUL = ("model", "average", "patch_heads", "token_heads", "adam")


def parameter_groups(network: Network) -> dict[tuple[str, bool], list[tuple[str, nn.Parameter]]]:
    """Named parameters by part and by whether they are the layers' matrices.

    The others are embeddings, the head, norms, biases and the patch convolution.
    """
    groups: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for part, is_matrix in itertools.product(PARTS, (True, False)):
        groups[part, is_matrix] = []
    for name, parameter in network.module.named_parameters():
        part = "tower" if network.tower_name in name else "rest"
        is_matrix = parameter.ndim == 2 and any(part_name in name for part_name in network.matrix_names)
        groups[part, is_matrix].append((name, parameter))
    return groups


def _named(module: nn.Module, prefix: str) -> list[tuple[str, nn.Parameter]]:
    return [(f"{prefix}.{name}", parameter) for name, parameter in module.named_parameters()]
