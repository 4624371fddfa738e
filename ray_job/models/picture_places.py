"""Pictures' features into the places that a prompt keeps for them, the same in every model.

Shapes: L tokens of a prompt, T tokens of a picture, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_ids(ids_L: Tensor, features: Sequence[Tensor], vocab_size: int) -> None:
    """Looks at a prompt's ids, int64 on the CPU, −k for picture k.

    Raises ValueError where placeholders and features do not match, or an id is outside the vocabulary.
    """
    if len(ids_L) and int(ids_L.max()) >= vocab_size:
        raise ValueError(f"token id {int(ids_L.max())} is outside the vocabulary of {vocab_size}")
    found = torch.bincount(-ids_L[ids_L < 0], minlength=len(features) + 1).tolist()[1:]
    expected = [len(features_TD) for features_TD in features]
    if found != expected:
        raise ValueError(f"placeholders by picture {found} do not match the features' lengths {expected}")


def with_features(embeds_LD: Tensor, ids_L: Tensor, features: Sequence[Tensor]) -> Tensor:
    """A prompt's embeddings, with those of its placeholders replaced, in whatever order pictures are mentioned.

    Args:
        embeds_LD: of the text; what they have in the places of pictures is not kept.
        ids_L: on the CPU, as `check_ids` takes them.
        features: (T, D) of pictures 1 to n.
    """
    if not features:
        return embeds_LD
    places = [(ids_L == -number).nonzero()[:, 0] for number in range(1, len(features) + 1)]
    return embeds_LD.index_copy(0, torch.cat(places).to(embeds_LD.device), torch.cat(list(features)).to(embeds_LD))
