"""Samples that are equal in all that an answer depends on are run once. No model, no torch."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from ray_job.rows import Result, Sample


class Duplicates:
    """Samples with the same tokens, pictures and parameters, in flight or lately answered.

    An answer is a function of exactly these, sampling included: its random numbers come from its seed alone.

    Args:
        max_answers: finished answers remembered for later duplicates; the oldest go first. None: every sample is run.
    """

    def __init__(self, max_answers: int | None) -> None:
        self._max_answers = max_answers
        self._answers: OrderedDict[bytes, Result] = OrderedDict()
        self._followers: dict[bytes, list[tuple[int, float]]] = {}  # key and time of arrival
        self._leaders: dict[int, bytes] = {}  # by `id` of the sample that is run
        self.num_found = 0

    def leads(self, sample: Sample) -> bool:
        """Whether this sample must be run; otherwise it comes out with, or after, the one that was."""
        if self._max_answers is None:
            return True
        question = _question(sample)
        if question in self._followers:
            self._followers[question].append((sample.key, time.monotonic()))
            self.num_found += 1
            return False
        self._followers[question] = []
        self._leaders[id(sample)] = question
        return True

    def remembered(self, sample: Sample) -> Result | None:
        """The answer to this sample, if an equal one was answered before."""
        answer = self._answers.get(_question(sample)) if self._answers else None
        if answer is None:
            return None
        self.num_found += 1
        return replace(answer, key=sample.key, latency_ms=0.0)

    def fan_out(self, sample: Sample, result: Result) -> list[Result]:
        """A finished sample's result and those of its duplicates."""
        if self._max_answers is None:
            return [result]
        question = self._leaders.pop(id(sample))
        now = time.monotonic()
        results = [result]
        for key, arrived_s in self._followers.pop(question):
            results.append(replace(result, key=key, latency_ms=(now - arrived_s) * 1000))
        if result.error is None and self._max_answers:
            self._answers[question] = result
            if len(self._answers) > self._max_answers:
                self._answers.popitem(last=False)
        return results


def _question(sample: Sample) -> bytes:
    """All that an answer depends on. 128 bits of a cryptographic hash over all of it, pictures by their own."""
    params = sample.params
    if params.is_greedy:  # what only sampling reads does not matter
        params = params.model_copy(update={"seed": 0, "temperature": 0.0, "top_p": 1.0, "top_k": 0})
    digest = hashlib.blake2b(np.asarray(sample.input_ids, dtype=np.int64).tobytes(), digest_size=16)
    for picture in sample.pictures:
        digest.update(len(picture.digest).to_bytes(8) + picture.digest)
    digest.update(params.model_dump_json().encode())
    return digest.digest()
