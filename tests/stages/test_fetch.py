"""A block's pictures over a real HTTPS server: at once, over kept connections, each once, each row with its error."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.inputs.source import iter_tables
from ray_job.rows import ATTEMPTS, PICTURES, POSITION, SAMPLES
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from ray_job.stages.prepare import Preparer
from tests.https import https_server, make_certificate, trust

from .test_prepare import png

PICTURE = png()


class Server:
    """What was asked of it, over how many connections, and how many requests it had at once."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.connections: set[int] = set()
        self.most_at_once = 0
        self.now = 0
        self.lock = threading.Lock()
        self.together: threading.Barrier | None = None  # answers wait until so many have been asked for

    def handler(self, keeps: bool) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keeps else "HTTP/1.0"

            def do_GET(self) -> None:
                with server.lock:
                    server.asked[self.path] += 1
                    first_time = server.asked[self.path] == 1
                    server.connections.add(self.client_address[1])
                    server.now += 1
                    server.most_at_once = max(server.most_at_once, server.now)
                if server.together is not None:
                    server.together.wait(timeout=60)
                with server.lock:
                    server.now -= 1
                if self.path == "/drop-once" and first_time:
                    self.close_connection = True
                    return
                status = 404 if "missing" in self.path else 503 if self.path == "/once" and first_time else 200
                self.send_response(status)
                body = PICTURE if status == 200 else b"no"
                self.send_header("Content-Length", str(len(body)))
                if self.path == "/last":
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def block_of(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, *, keeps: bool = True, **limits: Any
) -> Iterator[tuple[Server, Preparer, pa.Table]]:
    certificate = make_certificate(folder / "server.pem")
    trust(certificate, monkeypatch)
    server = Server()
    with https_server(certificate, server.handler(keeps)) as port:
        urls = [f"https://localhost:{port}{path}" for path in paths]
        pq.write_table(pa.table({"image": urls}), folder / "rows.parquet")
        data = {
            "input": {"path": str(folder / "rows.parquet"), "allow_hosts": [f"localhost:{port}"]},
            "prompt": {"template": "what?"},
            "model": {"path": "builtin:noop"},
            "limits": limits,
            "output": {"path": "x"},
        }
        _, source, preparer = open_job(JobSpec.from_dict(data))
        (table,) = iter_tables(source)
        yield server, preparer, table.add_column(0, POSITION, pa.array(range(len(paths)), pa.int64()))


def errors_of(prepared: pa.Table) -> list[str | None]:
    return [row[0]["error"] and row[0]["error"]["code"] for row in prepared.column(SAMPLES).to_pylist()]


def test_a_blocks_pictures_are_asked_for_at_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"/{number}" for number in range(32)]
    with block_of(paths, tmp_path, monkeypatch, max_image_bytes=10**6) as (server, preparer, table):
        server.together = threading.Barrier(16)  # nothing is answered before sixteen have been asked for
        prepared = preparer(table)
        assert errors_of(prepared) == [None] * 32
        assert server.asked == dict.fromkeys(paths, 1)
        assert server.most_at_once == 16
        assert len(server.connections) == 16, "the second sixteen came over the connections of the first"


def test_max_fetches_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with block_of([f"/{n}" for n in range(12)], tmp_path, monkeypatch, max_fetches=3) as (server, preparer, table):
        server.together = threading.Barrier(3)
        assert errors_of(preparer(table)) == [None] * 12
        assert server.most_at_once == 3


def test_a_picture_that_many_rows_name_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["/a", "/missing", "/b", "/a", "/missing", "/a", "/b"]
    with block_of(paths, tmp_path, monkeypatch, max_fetches=2) as (server, preparer, table):
        prepared = preparer(table)
        assert server.asked == {"/a": 1, "/b": 1, "/missing": 1}
        assert errors_of(prepared) == [
            path[1:].replace("missing", "image_missing") * (path == "/missing") or None for path in paths
        ]
        digests = [[picture["digest"] for picture in row] for row in prepared.column(PICTURES).to_pylist()]
        assert digests[0] == digests[3] == digests[5] != []
        assert digests[1] == digests[4] == []


@pytest.mark.parametrize("keeps", [True, False])
def test_what_fails_for_a_passing_reason_is_tried_again_by_its_row(
    keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["/a", "/once", "/b", "/missing-1", "/last", "/c"]
    with block_of(paths, tmp_path, monkeypatch, keeps=keeps) as (server, preparer, table):
        prepared = preparer(table)
        assert errors_of(prepared) == [None, None, None, "image_missing", None, None]
        assert prepared.column(ATTEMPTS).to_pylist() == [0, 1, 0, 0, 0, 0]
        assert server.asked == {**dict.fromkeys(paths, 1), "/once": 2}


def test_a_kept_connection_that_the_server_has_ended_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with block_of(["/a", "/drop-once", "/b"], tmp_path, monkeypatch, max_fetches=1, max_attempts=1) as (
        server,
        preparer,
        table,
    ):
        prepared = preparer(table)
        assert errors_of(prepared) == [None, None, None]
        assert prepared.column(ATTEMPTS).to_pylist() == [0, 0, 0]
        assert server.asked == {"/a": 1, "/drop-once": 2, "/b": 1}


def test_an_answer_that_is_an_error_keeps_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["/missing-1", "/a", "/missing-2", "/once"]
    with block_of(paths, tmp_path, monkeypatch, max_fetches=1) as (server, preparer, table):
        assert errors_of(preparer(table)) == ["image_missing", None, "image_missing", None]
        assert len(server.connections) == 1


def test_each_connection_looks_its_address_up_and_checks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_job.inputs.pictures import web

    checked: list[str] = []
    with block_of(["/last", "/last?2", "/3", "/4"], tmp_path, monkeypatch, max_fetches=1) as (server, preparer, table):
        is_public = web.is_public
        monkeypatch.setattr(web, "is_public", lambda address: checked.append(address) or is_public(address))
        assert errors_of(preparer(table)) == [None] * 4
        assert checked == ["127.0.0.1"] * len(server.connections)
        assert len(server.connections) == 2, "one that the server ended, and one for the other three"


def test_the_plan_fetches_side_by_side_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_job.plan import plan_job

    with block_of([f"/{n}" for n in range(8)], tmp_path, monkeypatch, max_fetches=4) as (server, preparer, _):
        server.together = threading.Barrier(4)
        plan = plan_job(preparer._spec)
        assert (plan.pictures, plan.distinct_pictures, plan.bad_samples) == (8, 1, {})


def test_rows_that_fail_before_their_pictures_ask_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with block_of(["/a"], tmp_path, monkeypatch, max_images=0) as (server, preparer, table):
        assert errors_of(preparer(table)) == ["too_many_images"]
        assert not server.asked
    assert json.dumps(errors_of(preparer(table.slice(0, 0)))) == "[]"
