"""What a model must offer to be run in padded batches by `static.py`.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from ray_job.rows import Picture, Sample

NextTokens: TypeAlias = Callable[[Tensor], Sequence[int] | None]
"""float32 logits (B, V) of what comes next in each row → the token each goes on with; None: the batch is over."""


class PaddedModel(Protocol):
    """A model that pads rows to one length and runs them together until it is told to stop."""

    max_len: int  # longest row, prompt and answer
    max_rows: int | None  # rows that may run together without one's changing another's answer; None: any number

    def is_long(self, num_tokens: int) -> bool:
        """Which of two position encodings a row of so many tokens takes; cached keys of the other are stale."""
        ...

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[Any]:
        """What `generate` takes of each of a batch's distinct pictures, and nothing else looks at."""
        ...

    def generate(self, samples: Sequence[Sample], encoded: Mapping[bytes, Any], next_tokens: NextTokens) -> None:
        """Runs a batch: all tokens of its rows, then one more of each at a time, as long as it gets them.

        Args:
            samples: at least one; of a row that is run again, `input_ids` end with its answer so far.
            encoded: what `encode_pictures` made of their pictures, by digest.
            next_tokens: called after the prompts and after each token; a row that is finished gets some token too, and
                nobody reads what comes of it.
        """
        ...
