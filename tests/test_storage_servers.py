"""Azure's and Google's storage through options alone, against the servers that stand in for them on one machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_job import JobSpec
from ray_job.errors import InputError
from ray_job.inputs.opening import open_source
from ray_job.inputs.pictures.references import read_picture
from ray_job.inputs.source import iter_tables
from ray_job.output.run import Run
from ray_job.spec import LimitsSpec
from ray_job.stages.open_job import open_job
from ray_job.storage.places import locate

pytestmark = [pytest.mark.data, pytest.mark.slow]
ACCOUNT = "devstoreaccount1"  # the emulator's only one, and its well-known key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def _served(command: list[str], port: int, folder: Path) -> Iterator[str]:
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "NO_COLOR": "1"})
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < until, (folder / "server.log").read_text()
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The options that lead to it."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no azurite-blob on the PATH: npm install azurite")
    port = _free_port()
    command = [program, "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    with _served([*command, "--blobPort", str(port)], port, tmp_path_factory.mktemp("azure")) as host:
        yield {
            "account_name": ACCOUNT,
            "account_key": KEY,
            "blob_storage_authority": host,
            "dfs_storage_authority": host,
            "blob_storage_scheme": "http",
        }


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The options that lead to it."""
    program = shutil.which("gcp-storage-emulator")
    if program is None:
        pytest.skip("no gcp-storage-emulator on the PATH: pip install gcp-storage-emulator")
    port = _free_port()
    command = [program, "start", "--in-memory", "--host", "127.0.0.1", "--port", str(port)]
    with _served(command, port, tmp_path_factory.mktemp("google")) as host:
        yield {"endpoint_override": f"http://{host}", "anonymous": True, "project_id": "p", "retry_time_limit": 20}


@pytest.fixture(params=["azure", "google"])
def bucket(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The URI of a bucket with a text and a picture, and its options."""
    options = request.getfixturevalue(request.param)
    uri = "abfs://rows" if request.param == "azure" else "gs://rows"
    place = locate(uri, {name: str(value).lower() if value is True else str(value) for name, value in options.items()})
    place.filesystem.create_dir("rows")
    for name, data in (("in/a.jsonl", b'{"prompt": "x"}\n{"prompt": "y"}\n'), ("in/p.jpg", b"picture")):
        with place.filesystem.open_output_stream(f"rows/{name}") as stream:
            stream.write(data)
    return uri, options


def test_rows_and_pictures_of_a_bucket(bucket: tuple[str, dict[str, Any]]) -> None:
    uri, options = bucket
    spec = JobSpec.from_dict(
        {"input": {"path": f"{uri}/in/*.jsonl", "storage_options": options}, "output": {"path": "o"}}
    )
    source = open_source(spec)
    rows = [row for table in iter_tables(source) for row in table.to_pylist()]
    assert [(row["row_id"], row["prompt"]) for row in rows] == [("a.jsonl#1", "x"), ("a.jsonl#2", "y")]
    for reference in ("p.jpg", f"{uri}/in/p.jpg", f"{source.image_root}/p.jpg"):
        assert read_picture(reference, root=source.image_root, limits=LimitsSpec()) == b"picture"


def test_an_output_in_a_bucket(bucket: tuple[str, dict[str, Any]]) -> None:
    uri, options = bucket
    spec, source, _ = open_job(
        JobSpec.from_dict(
            {
                "input": {"path": f"{uri}/in/*.jsonl", "storage_options": options},
                "output": {"path": f"{uri}/out", "storage_options": options},
                "model": {"path": "builtin:noop"},
            }
        )
    )
    with Run.open(spec, source) as run:
        run.begin("float32")
        root = run.root
    with root.filesystem.open_input_stream("rows/out/_manifest.json") as stream:
        text = stream.read().decode()
    shown = json.loads(text)["spec"]["output"]["storage_options"]
    assert KEY not in text
    assert {name for name, value in shown.items() if value == "…"} == {"account_key"} & options.keys()


def test_a_wrong_key_is_not_shown(azure: dict[str, Any]) -> None:
    wrong = "c2VjcmV0IGtleQ=="
    spec = {"path": "abfs://rows/in", "storage_options": {**azure, "account_key": wrong}}
    with pytest.raises(InputError, match="authenticate") as caught:
        open_source(JobSpec.from_dict({"input": spec, "output": {"path": "o"}}))
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("kind", ["delta", "lance"])
def test_tables_in_azure(azure: dict[str, Any], kind: str, tmp_path: Path) -> None:
    import lance
    import pyarrow as pa
    from deltalake import write_deltalake

    table = pa.table({"prompt": ["x", "y"]})
    if kind == "delta":
        write_deltalake(str(tmp_path / "table"), table)
    else:
        lance.write_dataset(table, str(tmp_path / "table"))
    options = {name: str(value) for name, value in azure.items()}
    place = locate(f"abfs://rows/{kind} table", options)
    fs.copy_files(str(tmp_path / "table"), place.path, destination_filesystem=place.filesystem)
    spec = {"path": f"abfs://rows/{kind} table", "storage_options": options}
    source = open_source(JobSpec.from_dict({"input": spec, "output": {"path": "o"}}))
    assert [row["prompt"] for table in iter_tables(source) for row in table.to_pylist()] == ["x", "y"]
