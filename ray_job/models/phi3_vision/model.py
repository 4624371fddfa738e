"""Phi-3-Vision in plain torch, its parameters under the official checkpoint's names.

It has no tokenizer, no batching and no sampling: an engine calls `encode_pictures`, `embed_row` and `forward`, a
trainer `hidden_states` and `lm_head`. Rotary tables are chosen for each row (`rope.py`), masks are built from lengths
and never from token ids, and no input is changed in place.

Shapes: B rows, L new tokens, K all keys of a row, cached ones included; D decoder width; N crops, C crop
side; T tokens of a picture; V vocabulary. Equal to the official Phi-3-vision-128k-instruct code in float32,
measured by tests/models/phi3_vision/test_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_job.errors import ModelError
from ray_job.models.phi3_vision.attention import Attention
from ray_job.models.phi3_vision.cache import KeyValueStore, KVCache
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.decoder_layer import DecoderLayer, RMSNorm
from ray_job.models.phi3_vision.mask import additive, causal_mask, needs_window
from ray_job.models.phi3_vision.preprocessor_config import CLIP_MEAN, CLIP_STD
from ray_job.models.phi3_vision.rope import RopeTables
from ray_job.models.phi3_vision.vision import PictureEmbedding
from ray_job.models.picture_places import check_ids, with_features


class Decoder(nn.Module):
    """What the checkpoint has under `model.`: token and picture embeddings, layers, last norm."""

    def __init__(self, config: Phi3VisionConfig, attention: Attention) -> None:
        super().__init__()
        layers = [DecoderLayer(config, attention, layer) for layer in range(config.num_hidden_layers)]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.vision_embed_tokens = PictureEmbedding(config, attention)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi3VisionModel(nn.Module):
    """The model an engine drives. `state_dict()` has exactly the official checkpoint's keys, also with a tied head."""

    def __init__(
        self,
        config: Phi3VisionConfig,
        attention: Attention = "sdpa",
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        if attention not in ("sdpa", "eager"):
            raise ModelError(f"attention is {attention!r}; allowed: 'sdpa', 'eager'")
        self.config = config
        self.attention = attention
        self.max_len = config.max_position_embeddings
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.model = Decoder(config, attention)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rope = RopeTables(config)
        self.tie_head()

    def tie_head(self) -> None:
        """Where the configuration ties them, makes the head's matrix the token embedding's, held once.

        To be called again after parameters were replaced, as by `load_state_dict(…, assign=True)`.
        """
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; a CPU may keep some weights in another (`models/casting.py`)."""
        return self.model.norm.weight.dtype

    def is_long(self, num_tokens: int) -> bool:
        """Whether a row of so many tokens takes the long rotary factors."""
        return self.config.is_long(num_tokens)

    def new_cache(self) -> KVCache:
        """An empty cache for one batch."""
        return KVCache()

    def encode_pictures(self, pictures: Sequence[Tensor], max_crops: int | None = None) -> list[Tensor]:
        """See `PictureEmbedding.encode`."""
        return self.model.vision_embed_tokens.encode(pictures, self.image_mean, self.image_std, max_crops)

    def encode_crops(
        self, crops_N3CC: Tensor, sizes: Sequence[tuple[int, int]], max_crops: int | None = None
    ) -> list[Tensor]:
        """Normalised crops, flat over pictures, and (rows, cols) of each picture, to features (T, D) each."""
        features: list[Tensor] = self.model.vision_embed_tokens(crops_N3CC, sizes, max_crops)
        return features

    def embed_row(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,), placeholders -k for picture k, and the features of pictures 1..n, to (L, D).

        Features go to their own picture's placeholders, in whatever order the pictures are mentioned.
        Keep `input_ids_L` on the CPU: it is looked at there, and left unchanged. Raises ValueError where
        placeholders and features do not match or an id is outside the vocabulary.
        """
        ids_L = input_ids_L.cpu()
        check_ids(ids_L, features, self.config.vocab_size)
        return with_features(self.model.embed_tokens(ids_L.clamp_min(0).to(self.device)), ids_L, features)

    def hidden_states(
        self,
        inputs_embeds_BLD: Tensor,
        *,
        position_ids_BL: Tensor,
        is_long_B: Tensor,
        attention_mask_BL: Tensor | None = None,
        mask_BHLL: Tensor | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """(B, L, D) after the last norm, before `lm_head`. See `forward` for the arguments."""
        mask = self._mask(inputs_embeds_BLD, attention_mask_BL, mask_BHLL, cache)
        cos_sin = self.rope.cos_sin(position_ids_BL, is_long_B, inputs_embeds_BLD.dtype)
        hidden_BLD = inputs_embeds_BLD
        for layer in self.model.layers:
            hidden_BLD = layer(hidden_BLD, cos_sin, mask, cache)
        normed_BLD: Tensor = self.model.norm(hidden_BLD)
        return normed_BLD

    def forward(
        self,
        inputs_embeds_BLD: Tensor,
        *,
        position_ids_BL: Tensor,
        is_long_B: Tensor,
        attention_mask_BL: Tensor | None = None,
        mask_BHLL: Tensor | None = None,
        cache: KeyValueStore | None = None,
        logits_to_keep: int = 0,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """float32 logits: (B, L, V); the last `logits_to_keep` places; or (B, V) at place `last_B` of each row.

        position_ids_BL     int64, each token's place in its own row, padding not counted
        is_long_B           bool, rows rotated with the long factors (`config.is_long` of the row's length);
                            a row that becomes long must be prefilled again into a new cache
        attention_mask_BL   bool or 0/1 over all keys, cached ones first; None means no padding, and suits
                            right-padded prefill too, where no real query comes after a padding key
        mask_BHLL           a ready mask instead, bool (True attends) or additive; H may be 1
        cache               new tokens are appended to it

        Raises ValueError for a mask of another shape, or two ways of choosing places.
        """
        if logits_to_keep and last_B is not None:
            raise ValueError("give logits_to_keep or last_B, not both")
        hidden = self.hidden_states(
            inputs_embeds_BLD,
            position_ids_BL=position_ids_BL,
            is_long_B=is_long_B,
            attention_mask_BL=attention_mask_BL,
            mask_BHLL=mask_BHLL,
            cache=cache,
        )
        if last_B is not None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), last_B]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits: Tensor = self.lm_head(hidden)
        return logits.float()

    def _mask(
        self,
        inputs_BLD: Tensor,
        attention_mask_BL: Tensor | None,
        mask_BHLL: Tensor | None,
        cache: KeyValueStore | None,
    ) -> Tensor | None:
        """The mask for the layers, or None where attention needs none or is causal by itself."""
        if mask_BHLL is not None:
            if attention_mask_BL is not None:
                raise ValueError("give attention_mask_BL or mask_BHLL, not both")
            return additive(mask_BHLL, inputs_BLD.dtype) if self.attention == "eager" else mask_BHLL
        num_rows, num_new = inputs_BLD.shape[:2]
        num_keys = num_new + (cache.length if cache is not None else 0)
        if attention_mask_BL is not None and attention_mask_BL.shape != (num_rows, num_keys):
            shape = tuple(attention_mask_BL.shape)
            raise ValueError(f"attention_mask_BL is {shape}; the rows and all their keys are {(num_rows, num_keys)}")
        window = self.config.sliding_window
        # sdpa is causal by itself when no key is cached; one new token sees every key.
        is_simple = num_new == 1 or (self.attention == "sdpa" and num_new == num_keys)
        if attention_mask_BL is None and is_simple and not needs_window(num_keys, window):
            return None
        mask = causal_mask(num_new, num_keys, attention_mask_BL, window, inputs_BLD.device)
        return additive(mask, inputs_BLD.dtype) if self.attention == "eager" else mask
