"""Which tokens the forms of a step's answers allow: found on a host thread while the model runs, put on its logits.

A token's logit becomes the lesser of itself and its bound, which is ∞ or −∞: on a CPU that is many times as fast as
filling where a mask is set, and rows without a form keep their logits to the bit.

Shapes: S rows of a step, B of them whose answers have a form, W words of 32 tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_job.engine.interface import Forms, Matcher
from ray_job.engine.sequence import Sequence
from ray_job.engine.stats import Meter

_BITS_OF_BYTE = np.arange(256)[:, None] >> np.arange(8) & 1
_BOUNDS_OF_BYTE = np.where(_BITS_OF_BYTE, np.inf, -np.inf).astype(np.float32)


class Masks:
    """Finds an engine's masks, step after step, on one thread, which the first answer with a form starts."""

    def __init__(self, forms: Forms | None, meter: Meter) -> None:
        self._forms = forms
        self._meter = meter
        self._thread: ThreadPoolExecutor | None = None

    def start(self, answers: Rows[Sequence]) -> StepMasks | None:
        """Begins to find the masks of a step's answers, in this order; None where none has a form.

        Until these, or masks of a later step, are applied, no answer may go on.
        """
        matchers = {row: answer.matcher for row, answer in enumerate(answers) if answer.matcher is not None}
        if not matchers:
            return None
        assert self._forms is not None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        found = self._thread.submit(_find, self._forms, matchers, len(answers))
        return StepMasks(list(matchers), found, self._meter)


class StepMasks:
    """The masks of one step."""

    def __init__(self, rows: Rows[int], found: Future[tuple[npt.NDArray[np.int32], float]], meter: Meter) -> None:
        self._rows = rows
        self._found = found
        self._meter = meter

    def apply(self, logits_SV: Tensor) -> None:
        """Sets float32 logits of tokens that are not allowed to −∞, in place.

        Raises:
            RuntimeError: a form is broken.
        """
        with self._meter.time("mask_wait_s"):
            words_SW, seconds = self._found.result()
            self._meter.add_seconds("mask_s", seconds)
            bounds_SV = _bounds(words_SW, logits_SV.device)[:, : logits_SV.shape[1]]
            width = bounds_SV.shape[1]
            torch.minimum(logits_SV[:, :width], bounds_SV, out=logits_SV[:, :width])
            if width < logits_SV.shape[1]:  # ids that the tokenizer does not have
                logits_SV[self._rows, width:] = -torch.inf


def _find(forms: Forms, matchers: Mapping[int, Matcher], num_rows: int) -> tuple[npt.NDArray[np.int32], float]:
    """On the thread: masks (S, W), all bits set in rows without a form, and the seconds it took."""
    started_s = time.perf_counter()
    masks_BW = np.empty((len(matchers), forms.num_words), np.int32)
    forms.fill_masks(list(matchers.values()), masks_BW)
    words_SW = masks_BW
    if len(matchers) < num_rows:
        words_SW = np.full((num_rows, forms.num_words), -1, np.int32)
        words_SW[list(matchers)] = masks_BW
    return words_SW, time.perf_counter() - started_s


def _bounds(words_SW: npt.NDArray[np.int32], device: torch.device) -> Tensor:
    """float32 (S, 32 · W) on the device: ∞ where a bit is set, else −∞."""
    if device.type == "cpu":
        bytes_SN = words_SW.astype("<i4", copy=False).view(np.uint8)
        return torch.from_numpy(_BOUNDS_OF_BYTE.take(bytes_SN, axis=0)).flatten(1)
    sent_SW = torch.from_numpy(words_SW).pin_memory().to(device, non_blocking=True)
    bits_SW32 = (sent_SW[..., None] >> torch.arange(32, device=device)) & 1
    return ((bits_SW32 - 0.5) * torch.inf).flatten(1)
