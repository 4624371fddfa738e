"""The death of a process of Ray's under a job: what is said, the exit code, and that resuming finishes the job."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ray_job.cluster import liveness
from ray_job.cluster.liveness import Peer, wait_for_loss
from tests.chaos.harness import call, make_job

from .nodes import Nodes, free_ports


def listening(port: int) -> socket.socket:
    """A process's socket that accepts connections."""
    return socket.create_server(("127.0.0.1", port), backlog=100)


@pytest.fixture
def ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_ASK_INTERVAL_S", 0.01)


def until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    while not condition():
        waiting.wait(0.01)


def test_an_outage_that_ends_is_forgotten(ask_at_once: None, caplog: pytest.LogCaptureFixture) -> None:
    port = free_ports(1)[0]
    server, is_over = listening(port), threading.Event()
    found: list[list[Peer]] = []
    peers = [Peer("the head", "127.0.0.1", port, patience_s=1000.0)]
    thread = threading.Thread(target=lambda: found.append(wait_for_loss(peers, is_over)))
    thread.start()
    for num_outages in (1, 2):
        server.close()
        until(lambda num=num_outages: len(caplog.messages) == 2 * num - 1)  # type: ignore[misc]
        server = listening(port)
        until(lambda num=num_outages: len(caplog.messages) == 2 * num)  # type: ignore[misc]
    is_over.set()
    thread.join()
    server.close()
    assert found == [[]]
    assert caplog.messages == [f"the head at 127.0.0.1:{port} does not answer", "the head answers again"] * 2


def test_the_one_that_stays_away_is_named(ask_at_once: None) -> None:
    there, gone = free_ports(2)
    with listening(there):
        peers = [Peer("one", "127.0.0.1", there, 0.0), Peer("another", "127.0.0.1", gone, 0.1)]
        assert wait_for_loss(peers, threading.Event()) == peers[1:]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("process", "name"), [("gcs_server", "Ray's control process (gcs_server)"), ("raylet", "this machine's raylet")]
)
def test_a_job_whose_ray_dies_says_so_ends_with_75_and_is_finished_by_resuming(
    process: str, name: str, tmp_path: Path
) -> None:
    job = make_job(tmp_path)
    hooked = dict(job.env)
    with Nodes(1, {"RAY_AUTH_MODE": "disabled"}) as nodes:
        job.env = {**nodes.env, **hooked, "RAY_ADDRESS": nodes.address}
        driver = job.start()
        driver.wait_until(lambda: job.num_committed() > 32)
        for pid in nodes.pids(process):
            os.kill(pid, signal.SIGKILL)
        code, text = driver.wait()
    assert code == 75, text
    last = text.splitlines()[-1]
    # With its raylet, Ray ends the head's control process too, a moment later: then both are named.
    assert last.startswith("error: "), text
    assert f"{name} at " in last, text
    assert last.endswith("died. What is committed is whole: finish with --mode resume"), text
    manifest = job.manifest()
    assert (manifest["state"], f"error: {manifest['error']}") == ("failed", last)
    code, text = call("status", str(job.out))
    assert (code, f"{name} at " in text) == (0, True), text
    with Nodes(1, {"RAY_AUTH_MODE": "disabled"}) as nodes:
        job.env = {**nodes.env, **hooked, "RAY_ADDRESS": nodes.address}
        code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert job.answers() == job.expected()
    assert job.manifest()["already_done"] > 32


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("process", ["gcs_server", "raylet"])
def test_a_local_ray_that_dies_is_said_too_before_its_core_ends_the_driver(process: str, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    driver = job.start()
    driver.wait_until(lambda: job.num_committed() > 32)
    (victim,) = (child for child in psutil.Process(driver.pid).children() if child.name() == process)
    victim.kill()
    code, text = driver.wait()
    assert code == 75, text
    last = text.splitlines()[-1]
    assert last.endswith("died. What is committed is whole: finish with --mode resume"), text
    assert process in last, text
    assert job.manifest()["state"] == "failed"
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert job.answers() == job.expected()
