"""Forms that are finite automata over token ids, for the tiny model: as plain as can be, and followed exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_job.engine.interface import Matcher
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.rows import Sample
from ray_job.spec import StructuredOutputs
from tests.engine.tiny import STOP_ID, VOCAB, VOCABULARY


@dataclass(frozen=True)
class Automaton:
    """`edges[state]` says where each allowed token leads. An answer may end in the states of `ends`."""

    edges: Sequence[dict[int, int]]
    ends: Sequence[int]
    breaks_after: int | None = None  # so many tokens

    @property
    def form(self) -> StructuredOutputs:
        fields = {"edges": list(self.edges), "ends": list(self.ends), "breaks_after": self.breaks_after}
        return StructuredOutputs(grammar=json.dumps(fields))

    @classmethod
    def of(cls, form: StructuredOutputs) -> Automaton:
        assert form.grammar is not None
        found = json.loads(form.grammar)
        edges = [{int(token): state for token, state in each.items()} for each in found["edges"]]
        return cls(edges, found["ends"], found["breaks_after"])

    def state_after(self, token_ids: Sequence[int]) -> int:
        """Raises KeyError where a token is not allowed."""
        state = 0
        for token in token_ids:
            state = self.edges[state][token]
        return state

    def holds(self, token_ids: Sequence[int]) -> bool:
        """Whether this is a whole answer."""
        return self.state_after(token_ids) in self.ends


def line(token_ids: Sequence[int], **others: Any) -> Automaton:
    """The one answer that is allowed."""
    edges = [{token: state} for state, token in enumerate(token_ids, start=1)]
    return Automaton([*edges, {}], [len(token_ids)], **others)


def random_automaton(rng: random.Random, highest_id: int = VOCAB - 1) -> Automaton:
    """Each state leads to the next one and maybe elsewhere; many leave no choice."""
    ids = [token for token in range(highest_id + 1) if token != STOP_ID]
    size = rng.randint(1, 9)
    edges: list[dict[int, int]] = []
    for state in range(size):
        others = rng.sample(ids, rng.choice([0, 0, 0, 1, 6, 25]))
        edges.append({token: rng.randrange(size + 1) for token in others} | {rng.choice(ids): state + 1})
    edges.append({token: rng.randrange(size + 1) for token in rng.sample(ids, rng.choice([0, 0, 2]))})
    return Automaton(edges, [size, *rng.sample(range(size), min(size, rng.choice([0, 0, 1])))])


class Automata:
    """The `Forms` of these."""

    def __init__(self, num_words: int = -(-VOCAB // 32)) -> None:
        self.num_words = num_words

    def matcher(self, form: StructuredOutputs, max_tokens: int) -> Matcher:
        assert max_tokens >= 1
        try:
            return Follower(Automaton.of(form))
        except ValueError:
            raise RowError(ErrorCode.PARAMS_INVALID, "structured_outputs: not an automaton", Stage.GENERATE) from None

    def fill_masks(self, matchers: Sequence[Matcher], masks_BW: npt.NDArray[np.int32]) -> None:
        assert masks_BW.shape == (len(matchers), self.num_words)
        for matcher, words_W in zip(matchers, masks_BW, strict=True):
            assert isinstance(matcher, Follower)
            bits = np.zeros(self.num_words * 32, np.uint8)
            bits[matcher.allowed()] = 1
            words_W[:] = np.packbits(bits, bitorder="little").view("<i4")


class Follower:
    """The `Matcher` of one answer."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._state = 0
        self.num_taken = 0

    @property
    def is_complete(self) -> bool:
        return self._state in self._automaton.ends and not self._automaton.edges[self._state]

    def forced_ids(self) -> list[int]:
        forced, state = [], self._state
        while len(forced) < 3 and state not in self._automaton.ends and len(self._automaton.edges[state]) == 1:
            ((token, state),) = self._automaton.edges[state].items()
            forced.append(token)
        return forced

    def take(self, token_id: int) -> None:
        if token_id == STOP_ID and self._state in self._automaton.ends:
            return
        if token_id not in self._automaton.edges[self._state]:
            raise ValueError(f"token {token_id} is not allowed")
        self._state = self._automaton.edges[self._state][token_id]
        self.num_taken += 1

    def allowed(self) -> list[int]:
        """What may come next; raises RuntimeError where it is broken."""
        if self.num_taken == self._automaton.breaks_after:
            raise RuntimeError("the automaton is too large")
        may_end = self._state in self._automaton.ends
        found = [*self._automaton.edges[self._state], *([STOP_ID] if may_end else [])]
        if not found:
            raise RuntimeError("no token goes on with the form")
        return found


SHAPED = replace(VOCABULARY, forms=Automata())


def with_forms(samples: Sequence[Sample], rng: random.Random, share: float = 0.6) -> list[Sample]:
    """The samples, this share of them with an automaton each; some of them with the same."""
    automata = [random_automaton(rng) for _ in range(4)]
    found = []
    for sample in samples:
        if rng.random() < share:
            automaton = rng.choice([random_automaton(rng), *automata])
            sample = replace(sample, params=sample.params.model_copy(update={"structured_outputs": automaton.form}))
        found.append(sample)
    return found
