"""Rows like users' own, made from a seed: what is asked, of which pictures, and how long the answers are.

Pictures are noise of the size that Phi-3-Vision's processor would give; their content changes no timing. A subclass
makes those of another model.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from ray_job.models.phi3_vision.image_processing import hd_size, num_image_tokens
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams

_SIDES_PX = (224, 1344)
_TEXT_TOKENS = (8, 120)
_SYSTEM_TOKENS = 24
QUESTIONS = 8  # of each picture, in the many-questions workload


class Workload:
    """Makes samples.

    Args:
        seed: the same seed makes the same rows.
        vocab_size: text ids stay below it.
        num_crops: most crops of a picture.
        share: whether equal pictures have equal digests. Without, no engine can reuse anything.
    """

    def __init__(self, seed: int, vocab_size: int, num_crops: int, share: bool = True) -> None:
        self._rng = random.Random(seed)
        self._vocab_size = vocab_size
        self._num_crops = num_crops
        self._share = share
        self._system = self._text(_SYSTEM_TOKENS, _SYSTEM_TOKENS)

    def long_tailed(self, rows: int) -> list[Sample]:
        """Mixed pictures, a quarter of them shown before; most answers are short, some have 128 tokens."""
        found: list[Sample] = []
        for key in range(rows):
            repeats = found and self._rng.random() < 0.25
            shown = self._rng.choice(found).pictures[0] if repeats else self._picture()
            found.append(self._sample(key, [shown], self._text(*_TEXT_TOKENS), self._long_tail()))
        return found

    def many_questions(self, rows: int) -> list[Sample]:
        """Eight questions of each picture, with short answers."""
        found: list[Sample] = []
        while len(found) < rows:
            shown = self._picture()
            for _ in range(min(QUESTIONS, rows - len(found))):
                found.append(self._sample(len(found), [shown], self._text(8, 32), self._rng.randint(4, 24)))
        return found

    def uniform(self, rows: int) -> list[Sample]:
        """Pictures, prompts and answers of one size, no picture twice: no order of rows gains anything."""
        return [self._sample(key, [self._picture(672, 672)], self._text(32, 32), 32) for key in range(rows)]

    def long(self, rows: int) -> list[Sample]:
        """Every fourth row has pictures of 3,800 tokens or more; the first one's answer ends beyond 4,096."""
        found = []
        for key in range(rows):
            shown = [self._picture()]
            num_tokens = self._num_tokens(shown[0])
            while key % 4 == 0 and num_tokens < 3800:
                shown.append(self._picture())
                num_tokens += self._num_tokens(shown[-1])
            left = 4094 - len(self._system) - num_tokens - len(shown)  # an answer has at least 4 tokens
            text = self._text(left, left) if key == 0 and left > 0 else self._text(*_TEXT_TOKENS)
            found.append(self._sample(key, shown, text, self._long_tail()))
        return found

    def _sample(self, key: int, shown: list[Picture], text: list[int], max_new_tokens: int) -> Sample:
        ids = list(self._system)
        for number, each in enumerate(shown, start=1):
            ids += [-number] * self._num_tokens(each) + [1]
        if not self._share:
            shown = [Picture(each.digest + key.to_bytes(4), each.arrays) for each in shown]
        return Sample(key, ids + text, shown, GenerationParams(max_new_tokens=max_new_tokens))

    def _picture(self, width: int | None = None, height: int | None = None) -> Picture:
        size = hd_size(width or self._rng.randint(*_SIDES_PX), height or self._rng.randint(*_SIDES_PX), self._num_crops)
        seed = self._rng.getrandbits(64)
        pixels = np.random.default_rng(seed).integers(0, 256, (size.rows * 336, size.cols * 336, 3), dtype=np.uint8)
        return Picture(seed.to_bytes(16), {PIXELS: pixels})

    def _text(self, low: int, high: int) -> list[int]:
        return [self._rng.randrange(3, self._vocab_size) for _ in range(self._rng.randint(low, high))]

    def _long_tail(self) -> int:
        """4 to 128 tokens; half of the answers have fewer than 10, the mean is 21."""
        return int(4 * 32 ** (self._rng.random() ** 2) + 0.5)

    def _num_tokens(self, shown: Picture) -> int:
        height, width, _ = shown.arrays[PIXELS].shape
        return num_image_tokens(height // 336, width // 336)


MAKERS: dict[str, Callable[[Workload, int], list[Sample]]] = {
    "long-tailed": Workload.long_tailed,
    "many-questions": Workload.many_questions,
    "uniform": Workload.uniform,
    "long": Workload.long,
}
