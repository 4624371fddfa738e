"""Phi-3-Vision in small: the demo's model, from random weights.

Shapes: as in `architecture.py`; S tokens along one side of a crop, M channels of a merged patch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ray_job.demo.pictures import Scene
from ray_job.demo.questions import Example
from ray_job.demo.training.architecture import Answer, Network, Preparation, Seen, Size
from ray_job.demo.training.heads import grid_places
from ray_job.demo.training.recipe import Recipe
from ray_job.demo.training.start import init_tower
from ray_job.demo.training.targets import IGNORED, patch_targets
from ray_job.demo.training.tokenizer import generated_ids, save_tokenizer
from ray_job.models.phi3_vision.cache import KVCache
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.image_processing import hd_size
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import init_weights, load, save
from ray_job.prompts.parts import ImageTag, Message, Part, Text

_MAX_NEW_TOKENS = 14  # the longest answer, in JSON, takes as many, `<|end|>` included


class Phi3Vision:
    """An `Architecture`."""

    name = "phi3_vision"
    recipe = Recipe()
    start = "random weights"
    card = """\
# The demo's model

The Phi-3-Vision architecture in small ({num_parameters} parameters, bfloat16), trained from random weights on
drawn pictures. It answers short questions about coloured shapes, printed numbers and two pictures, and describes
one picture's shapes or number in JSON, so that `python -m ray_job demo` and the tests have a real model without a
download. It contains nothing of Microsoft's weights or tokenizer.
"""

    def write_folder(self, folder: Path) -> None:
        """config.json, the tokenizer's files and preprocessor_config.json."""
        model_config(save_tokenizer(folder)).save_pretrained(folder)

    def preparation(self, folder: Path) -> Preparation:
        """Raises ModelError for a folder that is not Phi-3-Vision's."""
        config = Phi3VisionConfig.from_pretrained(folder)
        patches_per_side = config.vision.image_size // config.vision.patch_size
        return Phi3VisionPreparation(Phi3VisionProcessor.from_pretrained(folder), patches_per_side)

    def network(self, folder: Path, seed: int) -> Network:
        """Random weights, but for the tower's start."""
        return Phi3VisionNetwork(new_model(Phi3VisionConfig.from_pretrained(folder), seed))

    def save(self, module: nn.Module, folder: Path) -> None:
        """config.json and model.safetensors."""
        assert isinstance(module, Phi3VisionModel)
        save(copy.deepcopy(module).to(torch.bfloat16), folder)

    def answer(self, folder: Path, module: nn.Module | None = None) -> Answer:
        """By the model and the processor, without an engine."""
        model = load(folder, dtype=torch.float32) if module is None else module
        assert isinstance(model, Phi3VisionModel)
        return answerer(model, Phi3VisionProcessor.from_pretrained(folder))


class Phi3VisionPreparation:
    """A `Preparation`. A `Size` is the rows and columns of a picture's crops."""

    num_shared_after_picture = 1  # the `<s>` after each picture

    def __init__(self, processor: Phi3VisionProcessor, patches_per_side: int) -> None:
        self.processor = processor
        self.crop_size = processor.crop_size
        self.patches_per_side = patches_per_side

    def look(self, scene: Scene, picture: Image.Image) -> Seen:
        """The overview and the crops of the HD picture."""
        pixels_HW3 = self.processor.picture(picture)
        size = hd_size(scene.width, scene.height, self.processor.num_crops, self.processor.crop_size)
        targets_NP4 = torch.from_numpy(patch_targets(scene, size, self.patches_per_side))
        crops_N3CC = pixels_to_crops(torch.from_numpy(pixels_HW3), self.processor.crop_size)
        return Seen(crops_N3CC, (size.rows, size.cols), targets_NP4)

    def num_tokens(self, scene: Scene) -> int:
        """From the picture's size alone."""
        return self.processor.image_tokens(scene.width, scene.height)

    def prompt(self, question: str, image_tokens: Sequence[int]) -> list[int]:
        """The official chat form."""
        return self.processor.encode(prompt_parts(self.processor, question, len(image_tokens)), image_tokens)

    def answer_ids(self, answer: str) -> list[int]:
        """The answer and `<|end|>`."""
        ids = self.processor.encode([Text(answer)], [])[1:]
        return [*generated_ids(answer, ids), self.processor.stop_ids[0]]


class Phi3VisionNetwork:
    """A `Network`. A `Size` is the rows and columns of a picture's crops."""

    rows_at_once: int | None = None
    patches_per_token = 4
    tower_name = "img_processor"
    matrix_names: tuple[str, ...] = ("layers.", "img_projection")

    def __init__(self, model: Phi3VisionModel) -> None:
        self.module: nn.Module = model
        self.model = model
        self.pictures = model.model.vision_embed_tokens
        self.tower_width = model.config.vision.hidden_size
        self.decoder_width = model.config.hidden_size
        self.decoder_layers = model.model.layers

    def num_crops(self, size: Size) -> int:
        """The overview's too."""
        rows, cols = size
        return 1 + rows * cols

    def patches(self, crops_N3CC: Tensor) -> Tensor:
        """The CLIP tower."""
        patches_NPV: Tensor = self.pictures.tower(crops_N3CC)
        return patches_NPV

    def features(self, patches_NPV: Tensor, sizes: Sequence[Size]) -> Tensor:
        """What `PictureEmbedding.forward` does after the tower."""
        merged = torch.split(self.pictures.merge(patches_NPV), [self.num_crops(size) for size in sizes])
        rows = [self.pictures.arrange(crops, *size) for crops, size in zip(merged, sizes, strict=True)]
        features_TD: Tensor = self.pictures.img_projection(torch.cat(rows))
        return features_TD

    def token_labels(self, targets_NP4: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Merged and arranged as `PictureEmbedding.arrange` does it, separators included."""
        merged = torch.split(self.pictures.merge(targets_NP4), [self.num_crops(size) for size in sizes])
        return torch.cat([_arrange(crops, *size) for crops, size in zip(merged, sizes, strict=True)])

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Without pictures."""
        embeds_BLD: Tensor = self.model.model.embed_tokens(ids_BL)
        return embeds_BLD

    def hidden_states(self, embeds_BLD: Tensor, positions_BL: Tensor, mask_B1LL: Tensor) -> Tensor:
        """With the short rotary factors: no row of training is long."""
        return self.model.hidden_states(
            embeds_BLD,
            position_ids_BL=positions_BL,
            is_long_B=torch.zeros(len(embeds_BLD), dtype=torch.bool),
            mask_BHLL=mask_B1LL,
        )

    def logits(self, hidden_XD: Tensor) -> Tensor:
        """The head."""
        logits_XV: Tensor = self.model.lm_head(hidden_XD)
        return logits_XV


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


def new_model(config: Phi3VisionConfig, seed: int) -> Phi3VisionModel:
    """Before training."""
    model = Phi3VisionModel(config)
    init_weights(model, seed)
    init_tower(model.model.vision_embed_tokens.tower, config.vision)
    return model


def prompt_parts(processor: Phi3VisionProcessor, question: str, num_pictures: int) -> list[Part]:
    """The official chat form: one line for each picture, then the question."""
    parts: list[Part] = []
    for number in range(1, num_pictures + 1):
        parts += [ImageTag(number), Text("\n")]
    return processor.chat_parts([Message("user", (*parts, Text(question)))])


def answerer(model: Phi3VisionModel, processor: Phi3VisionProcessor) -> Answer:
    """Greedy answers of a model."""

    @torch.inference_mode()
    def answer(examples: Sequence[Example]) -> list[list[str]]:
        rows: list[Tensor] = []
        for example in examples:
            features = model.encode_pictures([torch.from_numpy(processor.picture(p)) for p in example.pictures])
            tokens = [len(feature_TD) for feature_TD in features]
            for qa in example.questions:
                ids = processor.encode(prompt_parts(processor, qa.question, len(tokens)), tokens)
                rows.append(model.embed_row(torch.tensor(ids), features))
        texts = iter([processor.decode(ids) for ids in _greedy(model, rows, processor.stop_ids)])
        return [[next(texts) for _ in example.questions] for example in examples]

    return answer


def _greedy(model: Phi3VisionModel, rows_LD: Sequence[Tensor], stop_ids: Sequence[int]) -> list[list[int]]:
    """Generated ids of each embedded prompt, without the stop token. Rows are padded on the left."""
    width = max(len(row_LD) for row_LD in rows_LD)
    pads_B1 = torch.tensor([[width - len(row_LD)] for row_LD in rows_LD])
    embeds_BLD = torch.stack([F.pad(row_LD, (0, 0, width - len(row_LD), 0)) for row_LD in rows_LD])
    places_BL = torch.arange(width + _MAX_NEW_TOKENS) - pads_B1
    is_long_B = torch.zeros(len(rows_LD), dtype=torch.bool)  # prompts here are far below 4096 tokens
    cache = KVCache(capacity=width + _MAX_NEW_TOKENS)
    generated: list[Tensor] = []
    start, end = 0, width
    for _ in range(_MAX_NEW_TOKENS):
        logits_B1V = model(
            embeds_BLD,
            position_ids_BL=places_BL[:, start:end].clamp_min(0),
            attention_mask_BL=places_BL[:, :end] >= 0,
            is_long_B=is_long_B,
            cache=cache,
            logits_to_keep=1,
        )
        generated.append(logits_B1V[:, 0].argmax(-1))
        embeds_BLD = model.model.embed_tokens(generated[-1])[:, None]
        start, end = end, end + 1
    return [_until(ids, stop_ids) for ids in torch.stack(generated, dim=1).tolist()]


def _until(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token_id in enumerate(ids) if token_id in stop_ids), len(ids))]


def _arrange(merged_NSSX: Tensor, rows: int, cols: int) -> Tensor:
    """(T, X + 3): labels and places, with separators where the picture's tokens have them."""
    side, width = merged_NSSX.shape[1], merged_NSSX.shape[-1]
    local = merged_NSSX[1:].reshape(rows, cols, side, side, width).transpose(1, 2)
    local = _with_places(local.reshape(rows * side, cols * side, width), is_overview=False)
    separator_1X = local.new_full((1, width + 3), IGNORED)
    return torch.cat([local, separator_1X, _with_places(merged_NSSX[0], is_overview=True)])


def _with_places(grid_RCX: Tensor, is_overview: bool) -> Tensor:
    num_rows, num_columns, width = grid_RCX.shape
    newline = grid_RCX.new_full((num_rows, 1, width + 3), IGNORED)
    labels = torch.cat([grid_RCX, grid_places(num_rows, num_columns, is_overview)], dim=-1)
    return torch.cat([labels, newline], dim=1).flatten(0, 1)
