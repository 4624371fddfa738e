"""Reading the golden data and driving the model as a plain engine would, for the tests of this folder."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ray_job.models.phi3_vision.cache import KVCache
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.model import Phi3VisionModel

GOLDEN = Path(__file__).parent / "golden"

Compare = Callable[[str, Tensor, Tensor, float], None]


@functools.cache
def read_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@functools.cache
def read_tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name)


def open_image(name: str) -> Image.Image:
    with Image.open(GOLDEN / "images" / name) as image:
        image.load()
    return image


def expand(runs: Sequence[Sequence[int]]) -> list[int]:
    """`[id, count]` runs to ids."""
    return [token_id for token_id, count in runs for _ in range(count)]


@dataclass(frozen=True)
class Row:
    """One prompt with the features of its pictures."""

    ids: list[int]
    features: list[Tensor]


def golden_crops(name: str, sizes: Sequence[Sequence[int]]) -> Tensor:
    """The flat normalised crops of a sample of model.json, recorded as 48 × 48 blocks of uint8."""
    pixels = read_tensors("model.safetensors")[f"pix_u8.{name}"]
    pixels = pixels.repeat_interleave(7, dim=-1).repeat_interleave(7, dim=-2)
    crops = [
        # One crop alone is its own grid: the last of the two results is the crop normalised.
        pixels_to_crops(crop.permute(1, 2, 0))[1]
        for picture, (height, width) in zip(pixels, sizes, strict=True)
        for crop in picture[: 1 + (height // 336) * (width // 336)]
    ]
    return torch.stack(crops)


@functools.cache
def golden_row(model: Phi3VisionModel, name: str) -> Row:
    sample = read_json("model.json")["samples"][name]
    sizes = sample["image_sizes"]
    features: list[Tensor] = []
    if sizes:
        grid = [(height // 336, width // 336) for height, width in sizes]
        with torch.no_grad():
            features = model.encode_crops(golden_crops(name, sizes), grid)
    return Row(expand(sample["input_ids_rle"]), features)


def with_config(model: Phi3VisionModel, **changes: Any) -> Phi3VisionModel:
    """A model on the same weights with another configuration."""
    other = Phi3VisionModel(dataclasses.replace(model.config, **changes), model.attention)
    other.load_state_dict(model.state_dict())
    return other.eval()


@torch.no_grad()
def logits_of(model: Phi3VisionModel, row: Row) -> Tensor:
    """Logits (L, V) of one row, without a cache."""
    embeds = model.embed_row(torch.tensor(row.ids), row.features)[None]
    length = len(row.ids)
    is_long = torch.tensor([model.config.is_long(length)])
    return model(embeds, position_ids_BL=torch.arange(length)[None], is_long_B=is_long)[0]


@dataclass
class Batch:
    """Rows padded to one width, with what `forward` wants to know of them."""

    embeds: Tensor
    position_ids: Tensor
    mask: Tensor
    is_long: Tensor
    last: Tensor


def pad(model: Phi3VisionModel, rows: Sequence[Row], side: str, extra: int = 0) -> Batch:
    lengths = torch.tensor([len(row.ids) for row in rows])
    width = int(lengths.max()) + extra
    starts = width - lengths if side == "left" else torch.zeros_like(lengths)
    columns = torch.arange(width)[None]
    mask = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
    embeds = model.embed_row(torch.full((width,), model.config.pad_token_id))
    embeds = embeds.repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        embeds[number, mask[number]] = model.embed_row(torch.tensor(row.ids), row.features)
    is_long = torch.tensor([model.config.is_long(int(length)) for length in lengths])
    positions = (columns - starts[:, None]).clamp_min(0)
    return Batch(embeds, positions, mask, is_long, starts + lengths - 1)


@dataclass
class Answer:
    """Generated tokens and the logits each was taken from."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logits: list[Tensor] = dataclasses.field(default_factory=list)


@torch.no_grad()
def greedy(
    model: Phi3VisionModel,
    rows: Sequence[Row],
    steps: int,
    *,
    eos: Sequence[int] = (),
    side: str = "left",
    extra: int = 0,
    use_cache: bool = True,
) -> list[Answer]:
    """Greedy answers of a padded batch. A row that becomes long has the batch prefilled again."""
    answers = [Answer() for _ in rows]
    running = [Row(list(row.ids), row.features) for row in rows]
    cache: KVCache | None = None
    mask = torch.empty(0)
    for _ in range(steps):
        crosses = any(
            model.config.is_long(len(row.ids)) and not model.config.is_long(len(row.ids) - 1) for row in running
        )
        if cache is None or crosses or not use_cache:
            cache = KVCache()
            batch = pad(model, running, side, extra)
            mask = batch.mask
        else:
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.bool)], dim=1)
            batch = _newest(model, running)
        logits = model(
            batch.embeds,
            position_ids_BL=batch.position_ids,
            attention_mask_BL=mask,
            is_long_B=batch.is_long,
            cache=cache,
            last_B=batch.last,
        )
        for answer, row, row_logits in zip(answers, running, logits, strict=True):
            token = int(row_logits.argmax())
            row.ids.append(token)
            if not (answer.tokens and answer.tokens[-1] in eos):
                answer.tokens.append(token)
                answer.logits.append(row_logits)
    return answers


def _newest(model: Phi3VisionModel, rows: Sequence[Row]) -> Batch:
    lengths = [len(row.ids) for row in rows]
    return Batch(
        embeds=model.embed_row(torch.tensor([row.ids[-1] for row in rows]))[:, None],
        position_ids=torch.tensor(lengths)[:, None] - 1,
        mask=torch.empty(0),
        is_long=torch.tensor([model.config.is_long(length) for length in lengths]),
        last=torch.zeros(len(rows), dtype=torch.int64),
    )
