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
from ray_job.models.phi3_vision.vision import PictureEmbedding

_EMPTY_WEIGHT = 0.1  # most patches show nothing, and that is soon learned
_NUM_BINS = 8  # columns, and rows, of a picture
_PLACES = {"column": _NUM_BINS, "row": _NUM_BINS, "is_global": 2, "picture": 3}
_MERGED = 4  # patches of a token


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
    """What each token's four patches show, and where the token is, from the decoder's hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.what = nn.Linear(width, _MERGED * sum(FIELDS.values()))
        self.where = nn.Linear(width, sum(_PLACES.values()))

    def losses(self, hidden_TD: Tensor, what_TX: Tensor, where_T4: Tensor) -> tuple[Loss, Loss]:
        """What as in PatchHeads, and where: the mean over the four questions of place. Separators are left out."""
        is_real_T = where_T4[:, 0] != IGNORED
        normed_TD, where_T4 = self.norm(hidden_TD[is_real_T]), where_T4[is_real_T]
        what_XF = self.what(normed_TD).view(len(normed_TD) * _MERGED, -1)
        what = _labels_loss(what_XF, what_TX[is_real_T].view(-1, len(FIELDS)))
        fields = zip(self.where(normed_TD).split(list(_PLACES.values()), -1), where_T4.unbind(-1), strict=True)
        where = torch.stack([F.cross_entropy(logits, labels, reduction="sum") for logits, labels in fields])
        return what, Loss(where.mean(), len(where_T4))


def token_targets(
    pictures: PictureEmbedding, targets_NP4: Tensor, sizes: list[tuple[int, int]], numbers_T: Tensor
) -> tuple[Tensor, Tensor]:
    """What (T, 16) and where (T, 4), in the order of the pictures' tokens.

    `numbers_T` is the number of each token's picture in its prompt, from 0. Crops beyond those of `sizes` are ignored.
    """
    counts = [1 + rows * cols for rows, cols in sizes]
    merged = torch.split(pictures.merge(targets_NP4[: sum(counts)]), counts)
    arranged = [_arrange(picture, rows, cols) for picture, (rows, cols) in zip(merged, sizes, strict=True)]
    all_TX = torch.cat(arranged)
    numbers_T = torch.where(all_TX[:, -1] == IGNORED, IGNORED, numbers_T)
    return all_TX[:, :-3], torch.cat([all_TX[:, -3:], numbers_T[:, None]], dim=1)


def _arrange(merged_NSSX: Tensor, rows: int, cols: int) -> Tensor:
    """(T, X + 3): labels, column, row and is_global, with separators where the picture's tokens have them."""
    side, width = merged_NSSX.shape[1], merged_NSSX.shape[-1]
    local = merged_NSSX[1:].reshape(rows, cols, side, side, width).transpose(1, 2)
    local = _with_places(local.reshape(rows * side, cols * side, width), 0)
    separator_1X = local.new_full((1, width + 3), IGNORED)
    return torch.cat([local, separator_1X, _with_places(merged_NSSX[0], 1)])


def _with_places(grid_RCX: Tensor, is_global: int) -> Tensor:
    num_rows, num_columns, width = grid_RCX.shape
    row_R1 = (torch.arange(num_rows) * _NUM_BINS // num_rows)[:, None].expand(num_rows, num_columns)
    column_1C = (torch.arange(num_columns) * _NUM_BINS // num_columns).expand(num_rows, num_columns)
    places = torch.stack([column_1C, row_R1, torch.full_like(row_R1, is_global)], dim=-1)
    newline = grid_RCX.new_full((num_rows, 1, width + 3), IGNORED)
    return torch.cat([torch.cat([grid_RCX, places], dim=-1), newline], dim=1).flatten(0, 1)


def _labels_loss(logits_XF: Tensor, targets_X4: Tensor) -> Loss:
    weights_X = torch.where(targets_X4[:, 0] > 0, 1.0, _EMPTY_WEIGHT)
    fields = zip(torch.split(logits_XF, list(FIELDS.values()), -1), targets_X4.unbind(-1), strict=True)
    losses = [F.cross_entropy(logits, labels, reduction="none") @ weights_X for logits, labels in fields]
    return Loss(torch.stack(losses).sum(), weights_X.sum().item())
