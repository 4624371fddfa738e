"""The benchmark of whole jobs: every job is asked what `bench engine` asks, and one command runs them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_job.bench.peers.rows import answer_text, sample_of
from ray_job.bench.whole import NUM_WORDS, write_processor, write_rows
from ray_job.bench.workloads import Workload
from ray_job.inputs.source import iter_tables
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import ROW_ID
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job


def test_a_table_asks_what_the_workload_asks(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = Phi3VisionConfig()
    config.save_pretrained(model)
    write_processor(model, config.vocab_size, num_crops=4)
    samples = Workload(3, NUM_WORDS, num_crops=4).long_tailed(12)
    spec = write_rows(tmp_path, samples, "float32") | {"output": {"path": str(tmp_path / "out")}}
    settled, source, preparer = open_job(JobSpec.from_dict(spec))
    processor = load_processor(settled.model)
    asked = [
        sample_of(preparer, {**row, "id": row[ROW_ID]})
        for table in iter_tables(source, 12)
        for row in preparer.values(table)
    ]
    for sample, found in zip(samples, asked, strict=True):
        assert found.key == sample.key
        assert found.params == sample.params
        [theirs], [ours] = found.pictures, sample.pictures
        assert theirs.arrays[PIXELS].shape == ours.arrays[PIXELS].shape
        chat = {processor.bos_id, *range(32000, 32064)}
        assert [id for id in found.input_ids if id not in chat] == [id for id in sample.input_ids if id not in chat]
    digests = [found.pictures[0].digest for found in asked]
    assert [digests.index(each) for each in digests] == [
        [sample.pictures[0].digest for sample in samples].index(sample.pictures[0].digest) for sample in samples
    ]
    assert answer_text(processor, [5, 77, processor.stop_ids[0], 6]) == "t5 t77"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_one_command_runs_the_jobs_and_counts_equal_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_job", "bench", "whole", "--rows", "4", "--folder", str(tmp_path)]
    started_s = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True)
    took_s = time.monotonic() - started_s
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["rows_alike"] == {"ours": 4, "recipe": 4}
    assert [row["job"] for row in found["results"]] == ["ours", "recipe"]
    assert 0 < sum(row["seconds"] for row in found["results"]) < took_s
    for row in found["results"]:
        assert row["new_tokens"] == found["results"][0]["new_tokens"] > 4 * 4
        assert row["cpu_s"] > 0
        assert row["peak_memory_gib"] > 0.1  # several Pythons; the weights are a mapped file and not counted
