"""The scheduler's promises, against a pool that remembers which token of which text every place holds."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.engine.kv_cache import place, stretches
from ray_job.engine.layout import PromptLayout
from ray_job.engine.row import Chunk, Prompt, Row
from ray_job.engine.scheduler import Limits, Scheduler

TEXT = [list(range(100, 140)), list(range(200, 240))]
PICTURES = [b"cat", b"dog", b"cow"]


class Simulation:
    """Drives a scheduler as an engine does and checks everything it may not do."""

    def __init__(
        self,
        seed: int,
        num_rows: int,
        max_slots: int,
        max_tokens: int,
        step_tokens: int,
        shared: int | None,
        has_blocks: bool,
    ) -> None:
        self.rng = random.Random(seed)
        self.has_blocks = has_blocks
        self.scheduler = Scheduler[Row](
            max_slots=max_slots, max_tokens=max_tokens, step_tokens=step_tokens, min_shared=shared
        )
        self.coming = [self.row(max_tokens) for _ in range(num_rows)]
        self.num_rows = num_rows
        self.left: list[Row] = []
        self.places: dict[int, tuple[object, ...]] = {}
        self.arrived: list[Row] = []
        self.admitted: list[Row] = []

    def row(self, max_tokens: int) -> Row:
        """Prompts that begin alike more often than not; −1 is a picture's placeholder."""
        ids = self.rng.choice(TEXT)[: self.rng.randint(0, 12)]
        digests = []
        if self.rng.random() < 0.5:
            ids = [*ids, *[-1] * 6]
            digests = [self.rng.choice(PICTURES)]
        ids = [*ids, *(self.rng.randrange(300, 303) for _ in range(self.rng.randint(1, 6)))]
        longest = min(max_tokens, len(ids) + self.rng.randint(1, 15))
        blocks = []
        if self.has_blocks:  # a picture, and three tokens wherever 109 begins them
            blocks = [(ids.index(-1), ids.index(-1) + 6)] if digests else []
            blocks += [(9, 12)] if len(ids) >= 12 and ids[9] in (109, 209) and -1 not in ids[9:12] else []
        layout = PromptLayout(np.arange(len(ids))[None], blocks=tuple(sorted(blocks)))
        return Row(prompt=Prompt(ids, digests, layout), num_tokens=len(ids), max_tokens=longest)

    def content(self, row: Row, position: int) -> tuple[object, ...]:
        """What a key depends on: tokens up to its block's last, answers told apart by their row, and the factors."""
        blocks = row.prompt.layout.blocks
        seen_to = next((end for start, end in blocks if start <= position < end), position + 1)
        prompt = row.prompt.ids_L[:seen_to].tolist()
        seen = [row.prompt.digests[-token - 1] if token < 0 else token for token in prompt]
        own = id(row) if position >= len(row.prompt) else None
        return (tuple(seen), position, own, row.is_long)

    def run(self) -> None:
        for _ in range(4000):
            if not self.coming and not self.scheduler.has_rows:
                break
            self.step()
        assert len(self.left) == len(set(self.left)) == self.num_rows
        assert self.scheduler.running == []

    def step(self) -> None:
        scheduler, rng = self.scheduler, self.rng
        for _ in range(rng.randint(0, 3)):
            if self.coming:
                self.arrived.append(self.coming.pop())
                scheduler.add(self.arrived[-1])
        for row in scheduler.admit():
            self.admitted.append(row)
            row.is_ready = rng.random() < 0.7
        self.check_spans()
        chunks = scheduler.plan()
        self.check_plan(chunks)
        for chunk in chunks:
            self.compute(chunk)
        for chunk in chunks:
            self.attend(chunk)
            scheduler.advance(chunk)
        self.check_filled()
        for row in [chunk.row for chunk in chunks if chunk.needs_logits]:
            self.answer(row)
        for row in scheduler.running:
            row.is_ready = row.is_ready or rng.random() < 0.5
        if rng.random() < 0.02:
            scheduler.restart(Limits(max(1, scheduler.limits.ceiling // 2), scheduler.limits.step_tokens))
        if scheduler.running and rng.random() < 0.03:
            lost = rng.choice(scheduler.running)
            scheduler.drop(lost)
            self.left.append(lost)

    def check_spans(self) -> None:
        scheduler = self.scheduler
        assert len(scheduler.running) <= scheduler.max_slots
        kept = [*scheduler.running, *scheduler._retained]
        spans = {row.span for row in kept if row.span} | {piece.span for row in kept for piece in row.shared}
        taken = sorted((span.start, span.start + span.capacity) for span in spans)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(taken))
        assert scheduler.pool.used == sum(end - start for start, end in taken)
        assert scheduler.pool.used <= scheduler.pool.capacity
        assert scheduler.pool.used <= scheduler.limits.ceiling or len(scheduler.running) <= 1
        for span in spans:
            readers = [row for row in kept if row.span is span or any(piece.span is span for piece in row.shared)]
            owners = sum(row.span is span for row in kept)
            assert span.readers == len(readers) or owners == 0

    def check_plan(self, chunks: list[Chunk[Row]]) -> None:
        rows = [chunk.row for chunk in chunks]
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(self.scheduler.running)
        assert all(chunk.start < chunk.end for chunk in chunks)
        limit = self.scheduler.limits.step_tokens
        num_decodes = sum(chunk.is_decode for chunk in chunks)
        prompts = [chunk for chunk in chunks if not chunk.is_decode]
        most = max(limit, num_decodes + min(limit, 32))
        if prompts and prompts[0].row.prompt.layout.has_blocks(prompts[0].start, prompts[0].end):
            most = max(most, num_decodes + 6)  # the longest block
        assert sum(chunk.end - chunk.start for chunk in chunks) <= most
        for chunk in chunks:
            for start, end in chunk.row.prompt.layout.blocks:
                assert chunk.end <= start or end <= chunk.start or chunk.start <= start < end <= chunk.end
        if any(row.is_ready for row in self.scheduler.running[:1]):
            assert chunks, "the row admitted first can always go on"

    def compute(self, chunk: Chunk[Row]) -> None:
        assert chunk.row.span is not None
        first = place(chunk)
        assert chunk.row.span.start <= first
        assert first + chunk.end - chunk.start <= chunk.row.span.start + chunk.row.span.capacity
        for position in range(chunk.start, chunk.end):
            self.places[first + position - chunk.start] = self.content(chunk.row, position)

    def check_filled(self) -> None:
        """A span says how much of it is computed, which others may then read."""
        for row in self.scheduler.running:
            assert row.span is not None
            assert row.span.filled == max(0, row.num_computed - row.num_shared)

    def attend(self, chunk: Chunk[Row]) -> None:
        found = [place for each in stretches(chunk.row, 0, chunk.end) for place in range(each.start, each.end)]
        assert [self.places[place] for place in found] == [self.content(chunk.row, p) for p in range(chunk.end)]

    def answer(self, row: Row) -> None:
        if row.num_tokens + 1 >= row.max_tokens or self.rng.random() < 0.1:
            self.scheduler.finish(row)
            self.left.append(row)
            return
        row.num_tokens += 1
        if not row.is_long and self.rng.random() < 0.03:
            self.scheduler.put_back(row, is_long=True)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_rows=st.integers(1, 30),
    max_slots=st.integers(1, 8),
    max_tokens=st.sampled_from([45, 60, 120, 500]),
    step_tokens=st.sampled_from([1, 5, 17, 64, 500]),
    shared=st.sampled_from([None, 1, 4, 10]),
    has_blocks=st.booleans(),
)
def test_every_row_leaves_once_and_reads_only_its_own_text(
    seed: int,
    num_rows: int,
    max_slots: int,
    max_tokens: int,
    step_tokens: int,
    shared: int | None,
    has_blocks: bool,
) -> None:
    Simulation(seed, num_rows, max_slots, max_tokens, step_tokens, shared, has_blocks).run()


def _row(num_prompt: int, max_tokens: int) -> Row:
    return Row(prompt=Prompt([7] * num_prompt, ()), num_tokens=num_prompt, max_tokens=max_tokens)


def test_a_row_is_overtaken_only_so_often() -> None:
    """A short row beside a stream of rows with more to generate, which go first."""
    scheduler = Scheduler[Row](max_slots=2, max_tokens=100, step_tokens=50, min_shared=None)
    short = _row(1, 2)
    scheduler.add(short)
    overtaken_by = 0
    while short not in scheduler.running:
        for _ in range(3):
            scheduler.add(_row(10, 40))
        overtaken_by += len([row for row in scheduler.admit() if row is not short])
        for row in [row for row in scheduler.running if row is not short]:
            scheduler.finish(row)
        assert overtaken_by <= 5 * scheduler.max_slots
    assert overtaken_by >= 4 * scheduler.max_slots


def test_a_large_row_gets_its_room_in_the_end() -> None:
    """Small rows would always fit first."""
    scheduler = Scheduler[Row](max_slots=4, max_tokens=100, step_tokens=50, min_shared=None)
    for _ in range(4):
        scheduler.add(_row(5, 30))
    scheduler.admit()
    large = _row(80, 90)
    scheduler.add(large)
    num_finished = 0
    while large not in scheduler.running:
        scheduler.add(_row(5, 30))
        scheduler.finish(scheduler.running[0])
        num_finished += 1
        scheduler.admit()
        assert num_finished <= 6 * scheduler.max_slots


def test_a_row_is_next_once_exactly_so_many_later_ones_were_admitted() -> None:
    """Four times the slots; each later row has more to generate, and would go first."""
    scheduler = Scheduler[Row](max_slots=1, max_tokens=100, step_tokens=50, min_shared=None)
    short = _row(1, 2)
    scheduler.add(short)
    num_later = 0
    while True:
        scheduler.add(_row(10, 40))
        (admitted,) = scheduler.admit()
        if admitted is short:
            break
        num_later += 1
        scheduler.finish(admitted)
    assert num_later == 4
    assert (scheduler.num_admitted, scheduler.num_put_back, scheduler.reused_tokens) == (5, 0, 0)


def test_rows_that_waited_before_it_do_not_count_as_overtaking() -> None:
    scheduler = Scheduler[Row](max_slots=1, max_tokens=100, step_tokens=50, min_shared=None)
    for _ in range(3):
        scheduler.add(_row(10, 40))
    short = _row(1, 2)
    scheduler.add(short)
    num_before = 0
    while True:
        scheduler.add(_row(10, 40))
        (admitted,) = scheduler.admit()
        if admitted is short:
            break
        num_before += 1
        scheduler.finish(admitted)
    assert num_before == 3 + 4


def test_only_prompts_worth_sharing_are_kept() -> None:
    scheduler = Scheduler[Row](max_slots=1, max_tokens=100, step_tokens=50, min_shared=10)
    finished(scheduler, row_of([1] * 9, 20))
    assert (scheduler.pool.used, len(scheduler._retained)) == (0, 0)
    finished(scheduler, row_of([1] * 10, 20))
    assert (scheduler.pool.used, len(scheduler._retained)) == (10, 1)


def test_a_restart_goes_on_within_the_new_limits() -> None:
    scheduler = Scheduler[Row](max_slots=2, max_tokens=100, step_tokens=50, min_shared=10)
    finished(scheduler, row_of([1] * 10, 20))
    running = row_of([2] * 10, 20)
    scheduler.add(running)
    scheduler.admit()
    limits = scheduler.limits.halved()
    scheduler.restart(limits)
    assert scheduler.limits == limits == Limits(50, 32)
    assert (scheduler.pool.capacity, scheduler.pool.used, scheduler.running, scheduler.num_waiting) == (50, 0, [], 1)
    assert scheduler.admit() == [running]


def row_of(ids: list[int], max_tokens: int, *digests: bytes) -> Row:
    return Row(prompt=Prompt(ids, digests), num_tokens=len(ids), max_tokens=max_tokens)


def compute(scheduler: Scheduler[Row]) -> None:
    for chunk in scheduler.plan():
        scheduler.advance(chunk)


def finished(scheduler: Scheduler[Row], row: Row) -> Row:
    """The row added, run and answered: its prompt is kept for others."""
    scheduler.add(row)
    assert scheduler.admit() == [row]
    compute(scheduler)
    scheduler.finish(row)
    return row


def test_kept_prefixes_make_room_the_longest_unused_first() -> None:
    scheduler = Scheduler[Row](max_slots=4, max_tokens=100, step_tokens=100, min_shared=10)
    kept = [finished(scheduler, row_of([number] * 30, 35)) for number in (1, 2, 3)]
    assert scheduler.pool.used == 90
    again = row_of([1] * 30 + [9], 35)
    scheduler.add(again)
    assert scheduler.admit() == [again], "it needs 5 tokens beside the 30 that it shares"
    assert (again.num_shared, scheduler.reused_tokens, scheduler.pool.used) == (30, 30, 95)
    other = row_of([4] * 25, 30)
    scheduler.add(other)
    assert scheduler.admit() == [other]
    assert list(scheduler._retained) == [kept[2], kept[0]], "the second was unused for longest, the first is being read"
    large = row_of([5] * 60, 75)
    scheduler.add(large)
    assert scheduler.admit() == []
    assert list(scheduler._retained) == [kept[0]], "what a running row reads stays"
    scheduler.drop(again)
    scheduler.drop(other)
    assert scheduler.admit() == [large]
    assert (list(scheduler._retained), scheduler.pool.used) == ([], 75)


def test_a_row_that_fits_only_without_what_it_would_share_is_run_alone() -> None:
    """The prefix lies in the middle of the pool, and no hole beside it is large enough."""
    scheduler = Scheduler[Row](max_slots=4, max_tokens=100, step_tokens=100, min_shared=10)
    first, second = row_of([1] * 40, 45), row_of([2] * 20, 25)
    for row in (first, second):
        scheduler.add(row)
    assert scheduler.admit() == [first, second]
    compute(scheduler)
    scheduler.drop(first)
    scheduler.finish(second)
    large = row_of([2] * 20 + [3] * 40, 100)
    scheduler.add(large)
    assert scheduler.admit() == [large]
    assert (large.num_shared, scheduler.pool.used, scheduler.reused_tokens) == (0, 100, 0)


@pytest.mark.parametrize(
    ("is_long", "told", "expected"), [(True, None, True), (False, None, False), (True, False, False)]
)
def test_a_row_put_back_keeps_its_factors_unless_told(is_long: bool, told: bool | None, expected: bool) -> None:
    scheduler = Scheduler[Row](max_slots=1, max_tokens=100, step_tokens=100, min_shared=None)
    row, later = _row(5, 10), _row(5, 90)
    row.is_long = is_long
    scheduler.add(row)
    scheduler.admit()
    compute(scheduler)
    scheduler.add(later)
    scheduler.put_back(row, told)
    assert (row.is_long, row.num_computed, row.span, scheduler.num_put_back) == (expected, 0, None, 1)
    assert scheduler.admit() == [row], "before others"


def test_limits_are_halved_down_to_the_smallest_step() -> None:
    limits, found = Limits(3, 100), []
    for _ in range(4):
        found.append((limits.ceiling, limits.step_tokens, limits.can_lower_step))
        limits = limits.halved()
    assert found == [(3, 100, True), (1, 50, True), (1, 32, False), (1, 32, False)]
    assert Limits(10, 5).halved() == Limits(5, 5), "a step that was smaller from the start stays"


def test_rows_with_a_running_rows_pictures_come_next() -> None:
    scheduler = Scheduler[Row](max_slots=2, max_tokens=200, step_tokens=100, min_shared=None)
    cat = row_of([1, -1, 5], 10, b"cat")
    scheduler.add(cat)
    assert scheduler.admit() == [cat]
    longer = row_of([1, -1, 6], 90, b"dog")
    same = [row_of([1, -1, number], 10, b"cat") for number in (7, 8)]
    for row in (longer, *same):
        scheduler.add(row)
    admitted = []
    for _ in range(3):
        (row,) = scheduler.admit()
        admitted.append(row)
        scheduler.finish(row)
    assert admitted == [*same, longer]


@pytest.mark.parametrize("module", ["scheduler", "prefix", "spans", "duplicates", "stats"])
def test_it_imports_no_torch(module: str) -> None:
    code = f"import sys, ray_job.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_block_waits_for_a_step_of_its_own_size_and_no_longer() -> None:
    """In a step of 8: the first row's text, whose block of 6 comes next; then a block of 20, alone with decodes."""
    scheduler = Scheduler[Row](max_slots=3, max_tokens=200, step_tokens=8, min_shared=None)
    small, large = (
        Row(
            prompt=Prompt([7] * num, (), PromptLayout(np.arange(num)[None], blocks=blocks)),
            num_tokens=num,
            max_tokens=num + 9,
        )
        for num, blocks in ((11, ((4, 10),)), (25, ((0, 20),)))
    )
    plain = row_of([8] * 3, 12)
    for row in (small, large, plain):
        scheduler.add(row)
        scheduler.admit()
    steps = []
    while any(not row.is_decoding for row in scheduler.running):
        chunks = scheduler.plan()
        steps.append([(chunk.start, chunk.end) for chunk in chunks])
        for chunk in chunks:
            scheduler.advance(chunk)
            if chunk.needs_logits:
                chunk.row.num_tokens += 1
    assert steps == [
        [(0, 4), (0, 3)],
        [(3, 4), (4, 11)],
        [(11, 12), (4, 5), (0, 20)],
        [(12, 13), (5, 6), (20, 25)],
    ]
