"""What training asks of an architecture: how pictures and prompts are prepared, and the parts of its model.

Shapes: N crops; C crop side; P patches of a crop; V tower width; T tokens of all pictures; D decoder width; B rows,
L tokens of a row; X label fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor, nn

from ray_job.demo.pictures import Scene
from ray_job.demo.questions import Example
from ray_job.demo.training.recipe import Recipe

Size = tuple[int, int]  # what tells an architecture's model how a picture's crops are arranged
Answer = Callable[[Sequence[Example]], list[list[str]]]  # the answer to every question of every example, in order


@dataclass(frozen=True)
class Seen:
    """What the tower gets of one picture, how its crops are arranged, and what each patch shows."""

    crops_N3CC: Tensor
    size: Size
    targets_NP4: Tensor


class Preparation(Protocol):
    """Pictures and prompts as the model reads them. Pickles, for the process that makes batches."""

    crop_size: int
    patches_per_side: int  # of a crop
    num_shared_after_picture: int  # tokens after a prompt's last picture that are the same for every question

    def look(self, scene: Scene, picture: Image.Image) -> Seen:
        """What the model sees of a picture of `scene`."""
        ...

    def num_tokens(self, scene: Scene) -> int:
        """How many tokens stand for a picture of `scene` in a prompt."""
        ...

    def prompt(self, question: str, image_tokens: Sequence[int]) -> list[int]:
        """Ids of a single-turn chat: the pictures, then the question; -k in the places of picture k."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """What the model is to generate: the answer and the token that ends it."""
        ...


class Network(Protocol):
    """A model in the parts that are trained: tower, projector, decoder."""

    module: nn.Module  # what is trained, averaged and saved
    tower_width: int
    decoder_width: int
    decoder_layers: nn.ModuleList
    rows_at_once: int | None  # through the decoder, None: all; fewer are padded less, and smaller matrices cost more
    patches_per_token: int
    tower_name: str  # in the names of the tower's parameters, and of no other
    matrix_names: tuple[str, ...]  # in the names of the matrices of layers and projector

    def num_crops(self, size: Size) -> int:
        """How many crops a picture has."""
        ...

    def patches(self, crops_N3CC: Tensor) -> Tensor:
        """The tower: (N, 3, C, C) → (N, P, V)."""
        ...

    def features(self, patches_NPV: Tensor, sizes: Sequence[Size]) -> Tensor:
        """The projector: what takes the places of the pictures' tokens, (T, D)."""
        ...

    def token_labels(self, targets_NP4: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(T, X): what each token's patches show, then its column, its row and whether it is of the overview.

        Tokens that show no place of a picture, such as the ends of its lines, have IGNORED in every field.
        """
        ...

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Token embeddings (B, L, D)."""
        ...

    def hidden_states(self, embeds_BLD: Tensor, positions_BL: Tensor, mask_B1LL: Tensor) -> Tensor:
        """The decoder, last norm included: (B, L, D). `mask_B1LL` is True where a token sees another."""
        ...

    def logits(self, hidden_XD: Tensor) -> Tensor:
        """(X, vocabulary)."""
        ...


class Architecture(Protocol):
    """A kind of model that can be trained, and its folders."""

    name: str  # one of `choosing.ARCHITECTURES`
    recipe: Recipe  # by default
    start: str  # the weights that training starts from, in words
    card: str  # how the model card begins, up to "## Training"; formatted with `num_parameters`

    def write_folder(self, folder: Path) -> None:
        """Writes configuration, tokenizer and processor files; the folder is made if need be."""
        ...

    def preparation(self, folder: Path) -> Preparation:
        """Of a folder that `write_folder` wrote."""
        ...

    def network(self, folder: Path, seed: int) -> Network:
        """The model before training; the same for the same seed."""
        ...

    def save(self, module: nn.Module, folder: Path) -> None:
        """Writes a network's module in bfloat16, with its configuration."""
        ...

    def answer(self, folder: Path, module: nn.Module | None = None) -> Answer:
        """Greedy answers in float32, each question asked alone as in a job, of the saved weights or of `module`."""
        ...
