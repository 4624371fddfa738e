"""A vision-language model of transformers as the engine's `PackedModel`: its own layers run on packed tokens.

Only public interfaces of the library are used, and no model is named: what a family needs beyond this is a subclass in
`families/`. Equal to the library's `generate`, measured by tests/models/auto/test_continuous.py.

Shapes: T packed tokens of any rows, S of them whose next token is wanted, L tokens of a prompt, A axes of positions,
D decoder width, W width of embeddings and of pictures' features, N query heads, H key/value heads, C head_dim,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_job.engine.packed_model import Attend, AttentionLayer, PromptLayout
from ray_job.models.auto import pictures as prepared
from ray_job.models.auto.attention import ATTEND, NAME, AttendLayer
from ray_job.models.auto.inspection import inspect_layers
from ray_job.models.auto.last_layer import LastLayer
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.unfit import Unfit
from ray_job.models.casting import computing_dtype
from ray_job.models.picture_places import check_ids, with_features
from ray_job.models.projection import Packing
from ray_job.rows import Picture


class PackedAuto:
    """A library model behind the engine's attention. Holds no state between calls.

    Args:
        model: of `AutoModelForImageTextToText`, in evaluation mode. Its decoder's attention is set to the engine's:
            unless released, the model runs through this class alone.
        normalization: of pictures that come as whole numbers.
        free_bytes: memory beside which a second copy of its weights, laid out for products on a CPU
            (`projection.py`), must be small; by default what is available to this process now.

    Raises:
        Unfit: a layer attends in a way that the engine does not know; the model is released.
    """

    num_axes = 1
    first_position = 0

    def __init__(self, model: Any, normalization: Normalization, free_bytes: int | None = None) -> None:
        self._model = model
        self._decoder = model.get_decoder()
        self._embedding = model.get_input_embeddings()
        self._normalization = normalization
        self.dtype = computing_dtype(model)  # of activations, keys and values; some weights may be kept in another
        self._vision = model.base_model.get_image_features
        self._image_arguments = frozenset(inspect.signature(self._vision).parameters)
        self._library_attention = self._decoder.config._attn_implementation
        assert self._library_attention != NAME, "another object drives the model"
        self.max_len: int = self._decoder.config.max_position_embeddings
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise Unfit("it has logits of all tokens of a prompt, or of none (no logits_to_keep)")
        self._last_layer = LastLayer(self._decoder)
        self._packing = Packing(model, self.dtype, free_bytes)
        self.packed_bytes = self._packing.num_bytes
        self._take()
        try:
            inspected = inspect_layers(self._run_two_tokens)
        except BaseException:
            self.release()
            raise
        self.layers: Sequence[AttentionLayer] = [layer.attention for layer in inspected]
        self._query_scales = [layer.query_scale for layer in inspected]

    def release(self) -> None:
        """Gives the model its own attention and layers back, for good."""
        self._packing.take_out()
        self._last_layer.take_out()
        self._decoder.set_attn_implementation(self._library_attention)

    @contextmanager
    def released(self, attention: str | None = None) -> Iterator[None]:
        """Gives the model its own layers back for a while, and its own attention or another of the library's."""
        self._packing.take_out()
        self._last_layer.take_out()
        self._decoder.set_attn_implementation(attention or self._library_attention)
        try:
            yield
        finally:
            self._take()

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        device: torch.device = self._embedding.weight.device
        return device

    def is_long(self, num_tokens: int) -> bool:
        """False: models whose rotary factors follow from a row's length do not fit."""
        return False

    def num_crops(self, picture: Picture) -> int:
        """What encoding a picture costs, in pictures of 336 × 336 pixels."""
        return prepared.num_crops(picture)

    def encode_pictures(self, pictures: Sequence[Picture], max_crops: int | None = None) -> list[Tensor]:
        """Features (tokens, W) of each; at most `max_crops` crops at once, unless one picture has more."""
        features: dict[int, Tensor] = {}
        for batch in prepared.batches(pictures, max_crops):
            arrays = self.image_arrays([pictures[index] for index in batch])
            found = self._features(self._vision(**arrays, return_dict=True), len(batch))
            features.update(zip(batch, found, strict=True))
        return [features[index] for index in range(len(pictures))]

    def image_arrays(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the model takes of pictures that join without padding, by the names of its arguments."""
        return prepared.joined(pictures, self._image_arguments, self._normalization, self.device, self.dtype)

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        """Positions of a prompt with −k for picture k, and which stretches of it see themselves."""
        positions_L = np.arange(len(ids_L)) + self.first_position
        return PromptLayout(positions_L[None], self.first_position, self.blocks(ids_L))

    def blocks(self, ids_L: npt.NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
        """Stretches of a prompt whose tokens see one another, later ones included."""
        return ()

    def token_types(self, ids_L: npt.NDArray[np.int32], prompt_len: int) -> npt.NDArray[np.int64]:
        """(L,) of the library's token types of a prompt and its answer; its masks and positions follow from them."""
        return (ids_L < 0).astype(np.int64)

    def embed(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,) on the CPU, −k for the rows of `features[k - 1]` in order → (L, W).

        Raises ValueError where placeholders and features do not match, or an id is outside the vocabulary.
        """
        check_ids(input_ids_L, features, self._embedding.num_embeddings)
        embeds_LW = self.embed_tokens(input_ids_L.clamp_min(0).to(self.device))
        return with_features(embeds_LW, input_ids_L, features)

    def embed_tokens(self, ids_T: Tensor) -> Tensor:
        """Ids of the vocabulary, int64 (T,) on the model's device and not looked at → (T, W)."""
        embeds_TW: Tensor = self._embedding(ids_T)
        return embeds_TW

    def forward(
        self, embeds_TW: Tensor, positions_AT: Tensor, is_long_T: Tensor, wanted_S: Tensor, attend: Attend
    ) -> Tensor:
        """Logits (S, V) already: models differ in more than a matrix between their last layer and them."""
        scales = self._query_scales

        def attend_layer(
            layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor, settings: dict[str, Any]
        ) -> Tensor:
            scaled_TNC = query_TNC if scales[layer] == 1.0 else query_TNC * scales[layer]
            return attend(layer, scaled_TNC, key_THC, value_THC)

        with self._last_layer.wants(wanted_S):
            return self._run(embeds_TW, positions_AT, wanted_S, attend_layer)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 (S, V), of what `forward` returns."""
        return hidden_SD.float()

    def _take(self) -> None:
        self._packing.put_in()
        self._last_layer.put_in()
        self._decoder.set_attn_implementation(NAME)

    def _run(self, embeds_TW: Tensor, positions_AT: Tensor, wanted_S: Tensor, attend: AttendLayer) -> Tensor:
        """The model over packed tokens → logits (S, V)."""
        positions = positions_AT if self.num_axes == 1 else positions_AT[:, None]
        output = self._model(
            inputs_embeds=embeds_TW[None],
            position_ids=positions,
            logits_to_keep=wanted_S,
            use_cache=False,
            **{ATTEND: attend},
        )
        logits_SV: Tensor = output.logits[0]
        return logits_SV

    def _features(self, found: Any, num_pictures: int) -> list[Tensor]:
        """(tokens, W) of each picture, from what the library returns."""
        return prepared.apart(found.pooler_output, num_pictures)

    def _run_two_tokens(self, attend: AttendLayer) -> None:
        ids_T = torch.zeros(2, dtype=torch.int64, device=self.device)
        positions_AT = torch.arange(2, device=self.device).expand(self.num_axes, -1)
        self._run(self.embed_tokens(ids_T), positions_AT, ids_T[:1], attend)
