"""Features of several vision layers, added in the decoder's first layers: Qwen3-VL.

Source of the scheme: DeepStack (arXiv 2406.04334).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.models.auto import pictures as prepared
from ray_job.models.auto.attention import ATTEND, AttendLayer
from ray_job.models.auto.families.multimodal_rope import MultimodalRope


class DeepStack(MultimodalRope):
    """Embeddings are (1 + K) · D wide: a token's own beside what the first K layers add to it, zeros for text."""

    def embed_tokens(self, ids_T: Tensor) -> Tensor:
        """Ids of the vocabulary → (T, (1 + K) · D)."""
        num_deep = len(self._model.config.vision_config.deepstack_visual_indexes)
        embeds_TD = self._embedding(ids_T)
        return F.pad(embeds_TD, (0, num_deep * embeds_TD.shape[-1]))

    def _features(self, found: Any, num_pictures: int) -> list[Tensor]:
        own = prepared.apart(found.pooler_output, num_pictures)
        lengths = [len(each) for each in own]
        deep = [torch.split(prepared.flat(layer), lengths) for layer in found.deepstack_features]
        return [torch.cat(widths, dim=-1) for widths in zip(own, *deep, strict=True)]

    def _run(self, embeds_TW: Tensor, positions_AT: Tensor, wanted_S: Tensor, attend: AttendLayer) -> Tensor:
        embeds_TD, *deep = torch.split(embeds_TW, self._embedding.embedding_dim, dim=-1)
        output = self._decoder(
            inputs_embeds=embeds_TD[None],
            position_ids=positions_AT[:, None],
            use_cache=False,
            visual_pos_masks=torch.ones(1, len(embeds_TD), dtype=torch.bool, device=embeds_TD.device),
            deepstack_visual_embeds=deep,
            **{ATTEND: attend},
        )
        logits_SV: Tensor = self._model.get_output_embeddings()(output.last_hidden_state[0, wanted_S])
        return logits_SV
