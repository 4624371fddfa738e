"""Which rows run, where their keys and values lie, and what the next step computes. Plain Python, no torch.

    waiting → (admit) → running → (finish) → retained prefix, or gone
                 ↑__________| put back: out of memory, or new rotary factors

A running row owns a *slot* (it is one of at most `max_slots`) and a *span* of the KV pool, sized at admission for
its prompt and its longest answer, so a running row never runs out of room. What it shares with a row that ran before,
it does not compute: it reads the first tokens of that row's spans. Spans are counted once, however many rows read
them, and live until their last reader is gone.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from ray_job.engine.prefix import PrefixIndex
from ray_job.engine.row import Chunk, R
from ray_job.engine.spans import Piece, Span, SpanPool

# Once this many times `max_slots` rows have been admitted before an older one, that one is admitted next.
_MAX_OVERTAKES = 4
_MIN_STEP_TOKENS = 32
# At one admission, so many rows are tried, longest first, before waiting for room.
_MAX_TRIES = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What memory has been found to allow."""

    ceiling: int  # tokens of all spans together, unless a row runs alone
    step_tokens: int

    @property
    def can_lower_step(self) -> bool:
        """Whether a smaller step is left to try."""
        return self.step_tokens > _MIN_STEP_TOKENS

    def halved(self) -> Limits:
        """The next lower limits."""
        step_tokens = max(self.step_tokens // 2, min(self.step_tokens, _MIN_STEP_TOKENS))
        return Limits(max(1, self.ceiling // 2), step_tokens)


class Scheduler(Generic[R]):
    """Rows in, chunks out.

    Args:
        max_slots: most rows that run together.
        max_tokens: KV pool, in tokens; also the longest row that can be admitted.
        step_tokens: most tokens computed in a step, but for a block of a prompt that is longer; decodes come first.
        min_shared: shorter common prefixes are not worth sharing, in tokens; None switches sharing off.
    """

    def __init__(self, *, max_slots: int, max_tokens: int, step_tokens: int, min_shared: int | None) -> None:
        self.max_slots = max_slots
        self.max_tokens = max_tokens
        self.limits = Limits(max_tokens, step_tokens)
        self.pool = SpanPool(max_tokens)
        self.running: list[R] = []
        self.num_admitted = 0
        self.num_put_back = 0
        self.reused_tokens = 0
        self._prefixes = PrefixIndex[R](min_shared)
        self._retained: OrderedDict[R, None] = OrderedDict()  # finished rows whose prompt is kept; oldest first
        self._waiting = _Waiting[R]()
        self._returned: deque[R] = deque()  # put back; admitted before all others

    @property
    def num_waiting(self) -> int:
        """Rows neither running nor gone."""
        return len(self._waiting) + len(self._returned)

    @property
    def has_rows(self) -> bool:
        """Whether any row is waiting or running."""
        return bool(self.running or self.num_waiting)

    def add(self, row: R) -> None:
        """Queues a row. It must fit the pool alone: `row.max_tokens` ≤ `max_tokens`."""
        assert len(row.prompt) <= row.num_tokens <= row.max_tokens <= self.max_tokens
        row.deadline = self.num_admitted + self.num_waiting + _MAX_OVERTAKES * self.max_slots
        self._waiting.add(row)

    def admit(self) -> list[R]:
        """Moves rows that fit from waiting to running; the rows admitted."""
        admitted = []
        while len(self.running) < self.max_slots:
            row = next((row for row in self._candidates() if self._place(row)), None)
            if row is None:
                break
            if self._returned and self._returned[0] is row:
                self._returned.popleft()
            self._waiting.discard(row)
            self.running.append(row)
            self._prefixes.add(row)
            self.num_admitted += 1
            admitted.append(row)
        return admitted

    def plan(self) -> list[Chunk[R]]:
        """What the next step computes: every row that decodes, then prompts in order of admission."""
        filled: dict[Span, int] = {}  # what spans that grow now will hold at the end of the step
        decoding = [row for row in self.running if row.is_decoding and row.has_prefix(filled)]
        chunks = [Chunk(row, row.num_computed, row.num_tokens) for row in decoding]
        step_tokens = self.limits.step_tokens
        room = max(step_tokens - len(chunks), min(step_tokens, _MIN_STEP_TOKENS))
        for row in self.running:
            if room <= 0:
                break
            # A prefix computed in this same step counts: a layer stores all its keys before it attends.
            if row.is_decoding or not row.is_ready or not row.has_prefix(filled):
                continue
            end = row.prompt.layout.whole(min(row.num_tokens, row.num_computed + room))
            if end == row.num_computed:  # a block begins here that is larger than the room
                if len(chunks) > len(decoding):
                    continue  # it comes first in a later step, and then has the room it needs
                end = row.prompt.layout.block_end(end)
            chunks.append(Chunk(row, row.num_computed, end))
            room -= end - row.num_computed
            assert row.span is not None
            filled[row.span] = end - row.num_shared
        return chunks

    def advance(self, chunk: Chunk[R]) -> None:
        """Notes that a chunk was computed."""
        row = chunk.row
        assert row.span is not None
        assert chunk.start == row.num_computed
        row.num_computed = chunk.end
        row.span.filled = chunk.end - row.num_shared

    def finish(self, row: R) -> None:
        """Frees an answered row's slot and span; its prompt stays for others while there is room."""
        assert row.span is not None
        own = len(row.prompt) - row.num_shared
        self.running.remove(row)
        if self._prefixes.is_worth(own) and row.num_computed >= len(row.prompt):
            self.pool.shrink(row.span, own)
            self._retained[row] = None
        else:
            self._release(row)

    def drop(self, row: R) -> None:
        """Forgets a running row that failed; rows that wait for its keys are put back."""
        self.running.remove(row)
        self._release(row)

    def put_back(self, row: R, is_long: bool | None = None) -> None:
        """Takes a running row out; it is admitted again before others and computed from its first token."""
        self.running.remove(row)
        self._release(row)
        row.is_long = row.is_long if is_long is None else is_long
        self.num_put_back += 1
        self._returned.append(row)

    def restart(self, limits: Limits) -> None:
        """Puts every row back, keeps no prefix, and goes on with an empty pool within `limits`."""
        for row in list(self.running):
            if row in self.running:  # not already put back with a row it depends on
                self.put_back(row)
        while self._retained:
            self._forget(next(iter(self._retained)))
        assert self.pool.used == 0
        self.limits = limits
        self.pool = SpanPool(limits.ceiling)

    def _candidates(self) -> Iterator[R]:
        """Rows to admit next, best first."""
        if self._returned:
            yield self._returned[0]
            return
        oldest = self._waiting.oldest()
        if oldest is not None and self.num_admitted >= oldest.deadline:
            yield oldest
            return
        yield from self._waiting.alike(self.running)
        yield from self._waiting.longest()

    def _place(self, row: R) -> bool:
        """Finds a row its prefix and its span; False where there is no room now."""
        if self._place_after(row, self._prefixes.longest(row)):
            return True
        # Alone, what it would share may be all that is in its way.
        return not self.running and self._place_after(row, [])

    def _place_after(self, row: R, shared: list[Piece]) -> bool:
        for piece in shared:
            piece.span.readers += 1
        need = row.max_tokens - sum(piece.length for piece in shared)
        span = self._allocate(need)
        if span is None:
            self._unread(shared)
            return False
        row.shared, row.span = shared, span
        row.num_computed = row.num_shared
        self.reused_tokens += row.num_shared
        for piece in shared:
            self._touch(piece.span)
        return True

    def _allocate(self, need: int) -> Span | None:
        """A span within the ceiling; kept prefixes make room. A row alone may exceed the ceiling."""
        while self.pool.used + need > self.limits.ceiling or not self.pool.has_hole(need):
            idle = next((row for row in self._retained if row.span and row.span.readers == 1), None)
            if idle is not None:
                self._forget(idle)
            elif self.running or self.pool.used:
                return None
            elif self.pool.has_hole(need):
                break
            else:
                self.pool = SpanPool(need)
        return self.pool.allocate(need)

    def _touch(self, span: Span) -> None:
        for row in self._retained:
            if row.span is span:
                self._retained.move_to_end(row)
                return

    def _forget(self, row: R) -> None:
        del self._retained[row]
        self._release(row)

    def _release(self, row: R) -> None:
        """Gives back a row's spans, and puts back the rows that wait for keys it will not compute."""
        span = row.span
        assert span is not None
        self._prefixes.remove(row)
        dependents = [
            other
            for other in self.running
            if any(piece.span is span and piece.length > span.filled for piece in other.shared)
        ]
        for dependent in dependents:
            if dependent in self.running:
                self.put_back(dependent)
        self._unread([*row.shared, Piece(span, 0)])
        row.shared, row.span, row.num_computed = [], None, 0

    def _unread(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            piece.span.readers -= 1
            if piece.span.readers == 0:
                self.pool.release(piece.span)


class _Waiting(Generic[R]):
    """Rows that were never admitted: by arrival, by length, and by their pictures."""

    def __init__(self) -> None:
        self._rows: OrderedDict[R, None] = OrderedDict()
        self._longest: list[tuple[int, int, R]] = []
        self._alike: dict[tuple[bytes, ...], OrderedDict[R, None]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: R) -> None:
        row.arrival, row.is_waiting = self._num_added, True
        self._num_added += 1
        self._rows[row] = None
        heapq.heappush(self._longest, self._entry(row))
        if row.prompt.digests:
            self._alike.setdefault(row.prompt.digests, OrderedDict())[row] = None

    def discard(self, row: R) -> None:
        if not row.is_waiting:
            return
        row.is_waiting = False
        del self._rows[row]
        group = self._alike.get(row.prompt.digests)
        if group is not None:
            del group[row]
            if not group:
                del self._alike[row.prompt.digests]

    def oldest(self) -> R | None:
        return next(iter(self._rows), None)

    def alike(self, running: list[R]) -> Iterator[R]:
        """A row with the same pictures as a running one, for each such set of pictures; newest first."""
        seen = set()
        for row in reversed(running):
            digests = row.prompt.digests
            if digests in self._alike and digests not in seen:
                seen.add(digests)
                yield next(iter(self._alike[digests]))

    def longest(self) -> Iterator[R]:
        """The rows with most to generate: started first, they do not run alone at the end."""
        tried: list[tuple[int, int, R]] = []
        try:
            while self._longest and len(tried) < _MAX_TRIES:
                entry = heapq.heappop(self._longest)
                if entry[2].is_waiting:
                    tried.append(entry)
                    yield entry[2]
        finally:
            for entry in tried:
                heapq.heappush(self._longest, entry)

    def _entry(self, row: R) -> tuple[int, int, R]:
        return (row.num_tokens - row.max_tokens, row.arrival, row)
