"""Auxiliary heads of training: what a patch, and later a picture's token, must encode.

Answers alone teach a model of this size slowly. `PatchHeads` asks the tower what every patch shows.
`TokenHeads` asks the decoder, half way up, what every picture token shows and where it is: in which picture,
which column and row. After that "the second picture", "on the left" and "the third letter" are look-ups.

Shapes: N crops; P patches of a crop; T tokens of all pictures; D a model width; F classes of all fields.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_job.demo.training.targets import FIELDS, IGNORED

_EMPTY_WEIGHT = 0.1  # most patches show nothing, and that is soon learned
_NUM_BINS = 8  # columns, and rows, of a picture
_PLACES = {"column": _NUM_BINS, "row": _NUM_BINS, "is_global": 2, "picture": 3}


class Loss(NamedTuple):
    """A weighted sum of cross-entropies and the sum of the weights, from which a mean over several parts is made."""

    sum: Tensor
    weight: float


class PatchHeads(nn.Module):
    """What each patch shows, from the tower's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(FIELDS.values()))

    def loss(self, patches_NPD: Tensor, targets_NP4: Tensor) -> Loss:
        """Cross-entropies of all label fields; patches that show something count ten times."""
        return _labels_loss(self.out(self.norm(patches_NPD)).flatten(0, 1), targets_NP4.flatten(0, 1))


class TokenHeads(nn.Module):
    """What each token's patches show, and where the token is, from the decoder's hidden states."""

    def __init__(self, width: int, patches_per_token: int) -> None:
        super().__init__()
        self.patches_per_token = patches_per_token
        self.norm = nn.LayerNorm(width)
        self.what = nn.Linear(width, patches_per_token * sum(FIELDS.values()))
        self.where = nn.Linear(width, sum(_PLACES.values()))

    def losses(self, hidden_TD: Tensor, what_TX: Tensor, where_T4: Tensor) -> tuple[Loss, Loss]:
        """What as in PatchHeads, and where: the mean over the four questions of place. Separators are left out."""
        is_real_T = where_T4[:, 0] != IGNORED
        normed_TD, where_T4 = self.norm(hidden_TD[is_real_T]), where_T4[is_real_T]
        what_XF = self.what(normed_TD).view(len(normed_TD) * self.patches_per_token, -1)
        what = _labels_loss(what_XF, what_TX[is_real_T].view(-1, len(FIELDS)))
        fields = zip(self.where(normed_TD).split(list(_PLACES.values()), -1), where_T4.unbind(-1), strict=True)
        where = torch.stack([F.cross_entropy(logits, labels, reduction="sum") for logits, labels in fields])
        return what, Loss(where.mean(), len(where_T4))


def token_targets(labels_TX: Tensor, numbers_T: Tensor) -> tuple[Tensor, Tensor]:
    """What (T, 4 · patches of a token) and where (T, 4), from an architecture's `token_labels`.

    `numbers_T` is the number of each token's picture in its prompt, from 0.
    """
    numbers_T = torch.where(labels_TX[:, -1] == IGNORED, IGNORED, numbers_T)
    return labels_TX[:, :-3], torch.cat([labels_TX[:, -3:], numbers_T[:, None]], dim=1)


def grid_places(num_rows: int, num_columns: int, is_overview: bool) -> Tensor:
    """(rows, columns, 3): column, row and whether it is of the overview, for every place of a grid of tokens."""
    row_R1 = (torch.arange(num_rows) * _NUM_BINS // num_rows)[:, None].expand(num_rows, num_columns)
    column_RC = (torch.arange(num_columns) * _NUM_BINS // num_columns).expand(num_rows, num_columns)
    return torch.stack([column_RC, row_R1, torch.full_like(row_R1, is_overview)], dim=-1)


def _labels_loss(logits_XF: Tensor, targets_X4: Tensor) -> Loss:
    weights_X = torch.where(targets_X4[:, 0] > 0, 1.0, _EMPTY_WEIGHT)
    fields = zip(torch.split(logits_XF, list(FIELDS.values()), -1), targets_X4.unbind(-1), strict=True)
    losses = [F.cross_entropy(logits, labels, reduction="none") @ weights_X for logits, labels in fields]
    return Loss(torch.stack(losses).sum(), weights_X.sum().item())
