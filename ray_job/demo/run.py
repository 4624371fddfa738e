"""`python -m ray_job demo`: fresh pictures, a table of questions, the whole job, and how many answers are right.

OUT/pictures/         JPEG, PNG and WebP files, some turned, transparent or of 16 bits, a few broken on purpose
OUT/scans/            PDF files of one page each
OUT/questions.parquet one question a row, with the paths of its pictures and the true answer
OUT/job.yaml          the job, to read and to run again
OUT/answers/          the job's output
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ray_job.demo.json_answers import is_same_json
from ray_job.demo.pictures import COLOURS
from ray_job.demo.questions import Example, make_split
from ray_job.demo.stored import stored
from ray_job.errors import SpecError
from ray_job.inputs.pictures.decode import decode
from ray_job.job import run_job
from ray_job.spec import JobSpec, LimitsSpec

_ENOUGH = 0.95  # of the answerable rows
_PICTURES_A_SCAN = 16
_SCAN_DPI = 100
_MARK = ".demo"  # only a folder with it is deleted
_BROKEN = ("cut short", "empty", "not a picture", "missing")


@dataclass(frozen=True, slots=True)
class Score:
    """How the answers compare with the truth, over rows whose pictures are whole."""

    right: int
    answerable: int
    by_kind: dict[str, tuple[int, int]]  # right, asked

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.answerable)


def run_demo(out: str, num_examples: int, seed: int) -> int:
    """Runs the demo and prints what came out.

    Returns:
        0, or 1 when fewer than 95 % of the answerable rows are right or a broken picture got an answer.
    """
    folder = Path(out)
    num_rows, num_broken = make_inputs(folder, num_examples, seed)
    print(f"{num_rows} questions about {num_examples} sets of pictures, {num_broken} of them broken, in {folder}/")
    report = run_job(JobSpec.from_yaml(folder / "job.yaml"))
    answers = pq.read_table(folder / "answers" / "data").to_pylist()
    errors = pq.read_table(folder / "answers" / "errors").to_pylist() if report.totals.failed else []
    score = score_answers(answers)
    print(_examples_table(answers, errors))
    print(_score_table(score))
    print(report.table())
    print(f"Run it again or change it: python -m ray_job run {folder}/job.yaml --set output.mode=overwrite")
    is_good = score.accuracy >= _ENOUGH and all(row["broken"] for row in errors) and len(errors) == num_broken
    return 0 if is_good else 1


def make_inputs(folder: Path, num_examples: int, seed: int) -> tuple[int, int]:
    """Writes pictures, questions and the job; returns how many rows there are, and how many of them are broken.

    Raises:
        SpecError: the folder holds something that was not made by a demo.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise SpecError([f"{folder} is not empty and was not made by a demo; choose another folder with --out"], "demo")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    (folder / "scans").mkdir()
    (folder / _MARK).touch()
    rows: list[dict[str, Any]] = []
    for index, example in enumerate(make_split("demo", num_examples, seed)):
        rows += _write_example(folder, index, example)
    _scan_some(folder, rows)
    broken = _break_some(folder, rows, random.Random(seed))
    schema = pa.schema(
        [("id", pa.string()), ("images", pa.list_(pa.string()))]
        + [(name, pa.string()) for name in ("question", "truth", "kind", "broken")]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "questions.parquet")
    (folder / "job.yaml").write_text(yaml.safe_dump(_job(folder.absolute()), sort_keys=False))
    return len(rows), broken


def score_answers(rows: list[dict[str, Any]]) -> Score:
    """Compares answers with the truth, exactly; those in JSON by what they say."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        answer, truth = row["generated_text"].strip(), row["truth"]
        by_kind[row["kind"]].append(is_same_json(answer, truth) if row["kind"] == "json" else answer == truth)
    counts = {kind: (sum(hits), len(hits)) for kind, hits in sorted(by_kind.items())}
    return Score(sum(right for right, _ in counts.values()), sum(asked for _, asked in counts.values()), counts)


def _job(folder: Path) -> dict[str, Any]:
    return {
        "input": {"path": str(folder / "questions.parquet"), "id_column": "id", "image_columns": "images"},
        "prompt": {"template": "{question}"},
        "model": {"path": "builtin:demo"},
        "generation": {"max_new_tokens": 16},
        "output": {"path": str(folder / "answers"), "part_rows": 64},
    }


def _write_example(folder: Path, index: int, example: Example) -> list[dict[str, Any]]:
    """One example's pictures as files, and a row for each of its questions."""
    paths = []
    asked = " ".join(f"{qa.question} {qa.answer}" for qa in example.questions)
    needs_colour = "colour" in asked or any(colour in asked for colour in COLOURS)
    for number, scene in enumerate(example.scenes, start=1):
        suffix, data = stored(scene, index + number, needs_colour)
        path = f"pictures/{index:05}-{number}.{suffix}"
        (folder / path).write_bytes(data)
        paths.append(path)
    return [
        {
            "id": f"{index:05}-{number}",
            "images": paths,
            "question": qa.question,
            "truth": qa.answer,
            "kind": qa.kind,
            "broken": None,
        }
        for number, qa in enumerate(example.questions)
    ]


def _scan_some(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Makes one of so many pictures a scanned page: a PDF file with the picture alone."""
    names = sorted({path for row in rows for path in row["images"]})
    for path in names[_PICTURES_A_SCAN // 2 :: _PICTURES_A_SCAN]:
        page = decode((folder / path).read_bytes(), LimitsSpec())
        scan = f"scans/{Path(path).stem}.pdf"
        page.save(folder / scan, "PDF", resolution=_SCAN_DPI, quality=95)
        (folder / path).unlink()
        for row in rows:
            row["images"] = [scan if each == path else each for each in row["images"]]


def _break_some(folder: Path, rows: list[dict[str, Any]], rng: random.Random) -> int:
    """Damages one picture in each way; returns how many rows are affected."""
    names = sorted({path for row in rows for path in row["images"]})
    for way, path in zip(_BROKEN, rng.sample(names, len(_BROKEN)), strict=True):
        file = folder / path
        damaged = {"cut short": file.read_bytes()[:200], "empty": b"", "not a picture": b"These are not pixels.\n"}
        if way in damaged:
            file.write_bytes(damaged[way])
        else:
            file.unlink()
        for row in rows:
            if path in row["images"]:
                row["broken"] = way
    return sum(row["broken"] is not None for row in rows)


def _examples_table(answers: list[dict[str, Any]], errors: list[dict[str, Any]]) -> str:
    first_of_kind = {row["kind"]: row for row in reversed(answers)}
    shown = [(row["question"], row["truth"], row["generated_text"]) for row in first_of_kind.values()]
    first_of_error = {row["broken"]: row for row in reversed(errors)}
    shown += [
        (row["question"], f"({way})", f"{row['error']['code']}: {row['error']['message']}")
        for way, row in first_of_error.items()
    ]
    return _table([("question", "truth", "answer"), *shown])


def _score_table(score: Score) -> str:
    rows = [(kind, f"{right}/{asked}", f"{right / asked:.1%}") for kind, (right, asked) in score.by_kind.items()]
    total = ("all", f"{score.right}/{score.answerable}", f"{score.accuracy:.1%}")
    return _table([("kind", "right", "accuracy"), *rows, total])


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n" + "\n".join(lines) + "\n"
