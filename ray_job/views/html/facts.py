"""What the page shows of an output, read from its files alone. How much is read does not grow with the number of rows,
footers aside; the page says what is left out."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_job.errors import RayJobError
from ray_job.output.compaction import read_part
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import REPORT, Manifest
from ray_job.output.parts import DATA, ERRORS
from ray_job.output.status import JobStatus, status_of
from ray_job.output.totals import Totals
from ray_job.storage.whole_files import read_text
from ray_job.views.gallery.cards import Card
from ray_job.views.gallery.output_cards import OutputGallery, Record, spread

NUM_CARDS = 96
_MAX_FAILED_CARDS = 32
_EXAMPLES = 3  # of each error code
_CODE_PARTS = 64  # error parts looked through for examples
_VALUE_PARTS = 200  # data parts whose numbers are read
_MIN_BINS, _MAX_BINS = 12, 60  # of the time in which parts were committed …
_MAX_COLUMNS = 120  # … and of all, starting included
_BIN_COMMITS = 3  # at least so many to a column, on average: fewer would show their rhythm, not the rate
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
_THUMBNAIL_BYTES = 2_500_000  # of all cards

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Output rows committed in each stretch of working time; the time between two runs is left out."""

    edges_s: list[float]  # of the stretches; all are as wide but the last
    answered: list[int]
    failed: list[int]
    runs: list[tuple[float, int]]  # when each run begins, and its number


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """One error code."""

    code: str
    count: int
    stage: str | None
    is_retryable: bool | None
    examples: list[Record]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything on the page."""

    manifest: Manifest
    status: JobStatus
    totals: Totals
    activity: dict[str, float]  # of the finished run's workers; empty where there is no report yet
    timeline: Timeline | None
    values: dict[str, Floats]  # latency_ms, prompt_tokens, completion_tokens of answered rows
    num_values_of: int  # answered rows, those not read included
    errors: list[ErrorClass]
    cards: list[Card]
    num_pictures_left_out: int  # the page is full
    problems: list[str] = field(default_factory=list)
    made_s: float = 0.0


def collect(path: str) -> Facts:
    """Reads an output.

    Raises:
        SpecError: the folder is no job's output.
        RayJobError: the storage fails.
    """
    gallery = OutputGallery.open(path)
    ledger = gallery.ledger
    problems = [
        f"{name} is damaged ({problem}); its rows are not counted" for name, problem in ledger.unreadable.items()
    ]
    totals = Totals.of_ledger(ledger)
    failed = gallery.records(ERRORS, _CODE_PARTS * 16, _CODE_PARTS)
    errors = _error_classes(totals, failed)
    shown = _round_robin(errors, failed, _MAX_FAILED_CARDS)
    answered = gallery.records(DATA, NUM_CARDS - len(shown))
    cards = gallery.cards(sorted([*answered, *shown], key=lambda record: record.position))
    cards, num_left_out = _within(cards, _THUMBNAIL_BYTES)
    values = _values(ledger, problems)
    return Facts(
        manifest=gallery.manifest,
        status=status_of(gallery.root, gallery.manifest, ledger),
        totals=totals,
        activity=_activity(gallery),
        timeline=_timeline(ledger, gallery.manifest),
        values=values,
        num_values_of=totals.answered,
        errors=errors,
        cards=cards,
        num_pictures_left_out=num_left_out,
        problems=list(dict.fromkeys([*problems, *gallery.problems])),
        made_s=time.time(),
    )


def _activity(gallery: OutputGallery) -> dict[str, float]:
    """What the workers of the run that finished did, as far as a report tells."""
    text = read_text(gallery.root, REPORT)
    try:
        return dict(json.loads(text)["activity"]) if text is not None else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _timeline(ledger: Ledger, manifest: Manifest) -> Timeline | None:
    """Rows over time; None where all parts were committed at the same moment."""
    by_run: dict[int, list[tuple[float, int, bool]]] = {}
    for part in ledger.parts:
        by_run.setdefault(part.account.run, []).append((part.written_s, part.num_rows, part.folder == DATA))
    runs: list[tuple[float, int]] = []
    events: list[tuple[float, int, bool]] = []
    total_s = committing_s = 0.0
    for number in sorted(by_run):
        parts = sorted(by_run[number])
        start_s = min(parts[0][0], manifest.started_s) if number == manifest.run else parts[0][0]
        runs.append((total_s, number))
        events += [(total_s + at_s - start_s, num_rows, is_data) for at_s, num_rows, is_data in parts]
        total_s += parts[-1][0] - start_s
        committing_s += parts[-1][0] - parts[0][0]
    if total_s <= 0:
        return None
    num_commits = len({part.name.rpartition("/")[2] for part in ledger.parts})
    num_bins = min(_MAX_BINS, max(_MIN_BINS, num_commits // _BIN_COMMITS))
    least_s = max(committing_s / num_bins, total_s / _MAX_COLUMNS)
    width_s = next((width for width in _WIDTHS_S if width >= least_s), least_s)
    num_columns = max(1, round(total_s / width_s))
    counts = {True: [0] * num_columns, False: [0] * num_columns}
    for at_s, num_rows, is_data in events:
        counts[is_data][min(int(at_s / width_s), num_columns - 1)] += num_rows
    edges_s = [*(index * width_s for index in range(num_columns)), total_s]
    return Timeline(edges_s, counts[True], counts[False], runs)


def _values(ledger: Ledger, problems: list[str]) -> dict[str, Floats]:
    found: dict[str, list[Floats]] = {"latency_ms": [], "prompt_tokens": [], "completion_tokens": []}
    indices = [index for index, part in enumerate(ledger.parts) if part.folder == DATA]
    for index in spread(indices, _VALUE_PARTS):
        try:
            rows = read_part(ledger.parts[index], ["usage", "latency_ms"]).filter(pa.array(ledger.counts_of(index)))
        except RayJobError as error:
            problems.append(str(error))
            continue
        found["latency_ms"].append(_floats(rows.column("latency_ms")))
        for name in ("prompt_tokens", "completion_tokens"):
            found[name].append(_floats(pc.struct_field(rows.column("usage"), name)))
    return {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in found.items()}


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.drop_null().to_numpy(), dtype=np.float64)


def _error_classes(totals: Totals, failed: list[Record]) -> list[ErrorClass]:
    by_code: dict[str, list[Record]] = {code: [] for code in totals.error_codes}
    for record in failed:
        by_code.setdefault(record.values["error"]["code"], []).append(record)
    classes = []
    for code, records in by_code.items():
        error = records[0].values["error"] if records else {"stage": None, "retryable": None}
        count = totals.error_codes.get(code, len(records))
        classes.append(ErrorClass(code, count, error["stage"], error["retryable"], records[:_EXAMPLES]))
    return classes


def _round_robin(errors: list[ErrorClass], failed: list[Record], num_records: int) -> list[Record]:
    """Failed records, the error codes taking turns."""
    turns: Counter[str] = Counter()
    ranked = []
    for record in failed:
        code = record.values["error"]["code"]
        ranked.append((turns[code], record))
        turns[code] += 1
    return [record for _, record in sorted(ranked, key=lambda pair: pair[0])[:num_records]]


def _within(cards: list[Card], max_bytes: int) -> tuple[list[Card], int]:
    """Cards with as many pictures as a page of bounded size can hold, and how many are left out."""
    kept, num_bytes, num_left_out = [], 0, 0
    for card in cards:
        size = sum(len(thumbnail.data) for thumbnail in card.pictures if not isinstance(thumbnail, str))
        if num_bytes + size > max_bytes:
            num_left_out += len(card.pictures)
            card = replace(card, pictures=(), num_more_pictures=card.num_more_pictures + len(card.pictures))
        else:
            num_bytes += size
        kept.append(card)
    return kept, num_left_out
