"""A report of an output in a bucket: read there, written there, and shown by a browser from there."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
from pyarrow import fs

from ray_job import show
from ray_job.cli import main
from tests.views.html.conftest import Output, failure, png

IDS = [f"row-{number}" for number in range(30)]


@pytest.fixture
def output(s3_store: fs.S3FileSystem, tmp_path: Path, request: pytest.FixtureRequest) -> Output:
    """A bucket with an input; its run is for the test to do."""
    name = request.node.name.replace("_", "-")[:60]
    s3_store.create_dir(name)
    output = Output(tmp_path, bucket=f"s3://{name}")
    output.write_input(IDS, ["What is it?"] * len(IDS), [png((9 * n % 256, 90, 90)) for n in range(len(IDS))])
    return output


def test_its_page_lies_beside_it(output: Output, moto: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output.run(IDS, lambda n: failure("image_empty", "no bytes") if n == 4 else {}, part_rows=10)
    place = output.at("answers/_report.html")
    assert main(["report", output.at("answers")]) == 0
    assert capsys.readouterr().out.strip() == place
    with urllib.request.urlopen(place.replace("s3://", f"{moto}/"), timeout=30) as reply:
        page = reply.read().decode()
        assert reply.headers.get_content_type() == "text/html"
    assert "Completed: every row is accounted for." in page
    assert "30 of 30 rows are in 3 parts; 29 answered + 1 failed = 30." in page
    assert len(re.findall('<img src="data:image/webp;base64,', page)) == len(IDS)
    assert page.count("What is it?") == len(IDS)
    assert main(["report", output.at("answers"), "--to", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<article") == len(IDS)
    capsys.readouterr()
    show(output.at("answers"), n=4)
    assert capsys.readouterr().out.count("40 × 30") == 4


def test_an_unfinished_run(output: Output, moto: str) -> None:
    output.run(IDS, part_rows=5, stop_after=10)
    assert main(["report", output.at("answers")]) == 0
    with urllib.request.urlopen(output.at("answers/_report.html").replace("s3://", f"{moto}/"), timeout=30) as reply:
        page = reply.read().decode()
    assert "On an object store that age is the only sign that it still runs." in page
    assert "10 of 30 rows are in 2 parts" in page


def test_an_input_that_is_out_of_reach(output: Output, s3_store: fs.S3FileSystem, tmp_path: Path) -> None:
    output.run(IDS)
    s3_store.delete_file(output.at("rows.parquet").removeprefix("s3://"))
    page = tmp_path / "page.html"
    assert main(["report", output.at("answers"), "--to", str(page)]) == 0
    text = page.read_text()
    assert "30 answered + 0 failed = 30" in text
    assert "<img" not in text
    assert "give them by the environment, as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL" in text
