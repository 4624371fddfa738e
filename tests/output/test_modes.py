"""The modes on a real local Ray: what is done, what is not done again, and what is refused."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job import JobSpec, run_job
from ray_job.errors import AccountingError, FingerprintMismatch, SpecError
from ray_job.output.ledger import Ledger
from ray_job.output.status import job_status
from ray_job.output.summary import Report
from ray_job.output.verify import verify
from ray_job.storage.places import locate

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.cluster, pytest.mark.timeout(300)]


class Workplace:
    """An input folder and an output folder. Modes are the same for every model; the no-op one starts quickly."""

    def __init__(self, folder: Path) -> None:
        self.input, self.out = folder / "in", folder / "out"
        self.input.mkdir()

    def rows(self, name: str, ids: Sequence[Any], questions: Sequence[Any] | None = None) -> None:
        questions = [f"what is {row_id}?" for row_id in ids] if questions is None else questions
        pq.write_table(pa.table({"id": ids, "question": questions}), self.input / name)

    def run(self, mode: str = "error", **sections: Any) -> Report:
        spec: dict[str, Any] = {
            "input": {"path": str(self.input), "id_column": "id", "image_columns": []},
            "model": {"path": "builtin:noop", "num_crops": 1},
            "generation": {"max_new_tokens": 3},
            "output": {"path": str(self.out), "part_rows": 8, "mode": mode},
        }
        for name, section in sections.items():
            spec[name] = {**spec.get(name, {}), **section}
        return run_job(JobSpec.from_dict(spec), stream=io.StringIO())

    def records(self) -> list[dict[str, Any]]:
        return [row for part in sorted(self.out.glob("*/part-*")) for row in pq.read_table(part).to_pylist()]

    def verified(self) -> bool:
        found = verify(locate(str(self.out)))
        assert found.is_good, found.table()
        return True

    def unfinish(self) -> None:
        """As a run leaves it that dies before its end: half the parts, no marker."""
        (self.out / "_SUCCESS").unlink()
        manifest = json.loads((self.out / "_manifest.json").read_text())
        (self.out / "_manifest.json").write_text(json.dumps({**manifest, "state": "in_progress"}))
        for part in sorted(self.out.glob("data/part-*"))[1::2]:
            part.unlink()


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.mark.slow
def test_append_does_the_new_rows_of_a_grown_folder_and_of_a_file_of_its_own(place: Workplace) -> None:
    place.rows("a.parquet", range(20))
    place.run()
    before = {path: path.read_bytes() for path in place.out.glob("data/*")}
    place.rows("b.parquet", range(20, 30))
    with pytest.raises(SpecError, match=r"is finished, and 10 rows of the input are new; use --mode append"):
        place.run("resume")
    assert (place.out / "_SUCCESS").exists()
    report = place.run("append")
    assert (report.input_rows, report.already_done, report.totals.rows) == (30, 20, 30)
    assert sorted(row["row_id"] for row in place.records()) == list(range(30))
    assert before.items() <= {path: path.read_bytes() for path in place.out.glob("data/*")}.items()
    assert place.verified()

    other = place.input.parent / "new"
    other.mkdir()
    pq.write_table(pa.table({"id": range(28, 34), "question": ["x"] * 6}), other / "c.parquet")
    report = place.run("append", input={"path": str(other)})
    assert (report.input_rows, report.already_done, report.totals.rows) == (6, 2, 34)
    assert place.verified()
    assert job_status(locate(str(place.out))).expected_rows == 34
    report = place.run("append", input={"path": str(other)})
    assert (report.already_done, report.totals.rows) == (6, 34)


def test_rows_with_pictures_are_appended_too(place: Workplace) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    table = pa.table({"id": range(12), "question": ["what?"] * 12, "image": [buffer.getvalue()] * 12})
    asked = {"image_columns": ["image"]}
    pq.write_table(table.slice(0, 8), place.input / "a.parquet")
    place.run(input=asked)
    pq.write_table(table.slice(8), place.input / "b.parquet")
    report = place.run("append", input=asked)
    assert (report.already_done, report.totals.answered) == (8, 12)
    assert sorted(row["row_id"] for row in place.records()) == list(range(12))
    assert place.verified()


@pytest.mark.slow
def test_the_same_id_twice_is_two_rows_and_is_reported(place: Workplace) -> None:
    place.rows("a.parquet", [1, 2, 2, 3, 2, 3], [f"question {row}" for row in range(6)])
    report = place.run()
    assert (report.duplicates.ids, report.duplicates.rows, report.duplicates.examples) == (2, 3, ("2", "3"))
    assert "2 ids" in report.table()
    assert Counter(row["row_id"] for row in place.records()) == {1: 1, 2: 3, 3: 2}
    assert place.verified()
    place.rows("b.parquet", [3, 3, 4])  # two of the four rows called 3 are known, by count
    report = place.run("append")
    assert (report.already_done, report.totals.rows) == (6, 9)
    assert Counter(row["row_id"] for row in place.records()) == {1: 1, 2: 3, 3: 4, 4: 1}
    assert place.verified()


@pytest.mark.slow
def test_a_part_of_the_rows_first_and_the_rest_later(place: Workplace) -> None:
    place.rows("a.parquet", range(40))
    place.run(input={"limit": 10})
    place.unfinish()
    num_kept = len(place.records())
    assert 0 < num_kept < 10
    report = place.run("resume")
    assert (report.input_rows, report.already_done) == (40, num_kept)
    assert place.verified()
    place.unfinish()
    with pytest.raises(SpecError, match="this is another input: the run there has 40 rows, this input 10"):
        place.run("append", input={"limit": 10})
    assert place.run("append").totals.rows == 40
    assert place.verified()


def test_pictures_are_known_by_their_paths_when_their_folder_grew(place: Workplace) -> None:
    def draw(names: Sequence[str]) -> None:
        for name in names:
            Image.new("RGB", (20, 20), (len(name) * 9, 0, 0)).save(place.input / f"{name}.png")

    pictures = {"input": {"id_column": None, "image_columns": None}, "prompt": {"template": "what?"}}
    draw(["b", "ddd"])
    place.run(**pictures)
    draw(["a", "cc", "e"])
    (place.input / "broken.png").write_bytes(b"none")
    report = place.run("append", **pictures)
    assert (report.already_done, report.totals.answered, report.totals.failed) == (2, 5, 1)
    assert sorted(row["row_id"] for row in place.records()) == [
        "a.png",
        "b.png",
        "broken.png",
        "cc.png",
        "ddd.png",
        "e.png",
    ]
    draw(["broken"])
    report = place.run("append", **pictures)
    assert report.totals.failed == 1, "a failed row is not done again unless asked"
    report = place.run("append", output={"retry_failed": True}, **pictures)
    assert (report.totals.answered, report.totals.failed, report.already_done) == (6, 0, 5)
    assert {row["row_id"]: row["attempts"] for row in place.records()}["broken.png"] == 2
    assert place.verified()


def test_one_failed_question_is_asked_again_and_the_others_are_not(place: Workplace) -> None:
    long = "word " * 100
    table = pa.table({"id": [1, 2], "qs": [["what?", long, "who?"], ["when?"]]})
    pq.write_table(table, place.input / "a.parquet")
    asked = {"prompt": {"questions_column": "qs"}}
    report = place.run(limits={"max_prompt_tokens": 200}, **asked)
    assert (report.totals.rows, report.totals.answered, report.totals.failed) == (2, 3, 1)
    latencies = {(row["row_id"], row["question_index"]): row["latency_ms"] for row in place.records()}
    report = place.run("resume", output={"retry_failed": True}, limits={"max_prompt_tokens": 2000}, **asked)
    assert (report.totals.rows, report.totals.answered, report.totals.failed) == (2, 4, 0)
    after = {(row["row_id"], row["question_index"]): row["latency_ms"] for row in place.records()}
    assert sorted(after) == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert [key for key in after if after[key] != latencies[key]] == [(1, 1)]
    assert place.verified()


def test_what_can_change_an_answer_is_refused_and_what_cannot_is_not(place: Workplace) -> None:
    place.rows("a.parquet", range(20))
    place.run()
    place.unfinish()
    with pytest.raises(FingerprintMismatch, match=r"prompt\.system: was null, is \"Be brief\.\""):
        place.run("resume", prompt={"system": "Be brief."})
    with pytest.raises(FingerprintMismatch, match=r"model\.dtype: was \"float32\", is \"bfloat16\""):
        place.run("resume", model={"dtype": "bfloat16"})
    with pytest.raises(FingerprintMismatch, match=r"output\.columns\.question: was \"string\", is absent"):
        place.run("resume", input={"keep_columns": []})
    place.run("resume", model={"dtype": "float32"}, batching={"block_rows": 3}, output={"part_rows": 5})
    assert place.verified()


@pytest.mark.slow
def test_overwriting_removes_our_files_only(place: Workplace) -> None:
    place.rows("a.parquet", range(20))
    place.run()
    (place.out / "notes.txt").write_text("mine")
    place.run("overwrite", input={"limit": 3}, prompt={"system": "Be brief."})
    assert len(place.records()) == 3
    assert (place.out / "notes.txt").read_text() == "mine"
    assert place.verified()


def test_a_count_that_does_not_add_up_ends_the_run(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.rows("a.parquet", range(20))
    scan = Ledger.scan

    def lossy(root: Any) -> Ledger:
        for part in sorted(Path(root.path).glob("data/part-*"))[:1]:
            part.unlink()
        return scan(root)

    monkeypatch.setattr(Ledger, "scan", lossy)
    with pytest.raises(AccountingError, match="20 rows were read"):
        place.run()
    assert not (place.out / "_SUCCESS").exists()
    monkeypatch.setattr(Ledger, "scan", scan)
    assert place.run("resume").totals.rows == 20
    assert place.verified()
