"""Real Ray nodes as processes of their own, on ports of their own, stopped by their own process ids."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import requests

ROOT = Path(__file__).parent.parent.parent
_CALL_S, _START_S, _STOP_S, _TRIES = 400.0, 120.0, 5.0, 3  # a busy machine may miss Ray's own 30 s for a start


class Nodes:
    """A head that has a dashboard and does no work, and workers of two CPUs each.

    Args:
        num_workers: beside the head.
        env: for every process of the cluster, and for those who talk to it.
    """

    def __init__(self, num_workers: int, env: Mapping[str, str]) -> None:
        tools = os.path.dirname(sys.executable)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_WAIT_POLICY": "PASSIVE",
            "RAY_worker_niceness": "0",  # else whatever runs beside the tests starves them
            **env,
        }
        self._num_workers = num_workers
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                self._start_all()
                return self
            except BaseException as error:
                self._stop()
                if not tries_left or not isinstance(error, AssertionError):
                    raise
        raise AssertionError("unreachable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def call(self, *arguments: str, **env: str) -> tuple[int, str]:
        """`python -m ray_job …` as a user of this cluster: exit code and what was said."""
        return self.execute(sys.executable, "-m", "ray_job", *arguments, **env)

    def execute(self, *arguments: str, **env: str) -> tuple[int, str]:
        """Any command as a user of this cluster."""
        finished = subprocess.run(
            arguments, capture_output=True, text=True, check=False, env={**self.env, **env}, timeout=_CALL_S
        )
        return finished.returncode, finished.stdout + finished.stderr

    def api(self, method: str, path: str) -> Any:
        """Ray's own HTTP interface, with the cluster's token where it wants one."""
        token = self.env.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = requests.request(method, f"{self.url}/api/{path}", headers=headers, timeout=60)
        response.raise_for_status()
        return response.json()

    def pids(self, name: str) -> list[int]:
        """Of the cluster's own processes with this name, such as `gcs_server`; the head's, where it has one."""
        return [process.pid for process in _descendants(self._processes[0].pid) if process.name() == name]

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """`python -m ray_job …`, left running with its words in a file."""
        with log.open("w") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "ray_job", *arguments], stdout=stream, stderr=subprocess.STDOUT, env=self.env
            )

    def _start_all(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray puts sockets below it
        port, dashboard_port, client_port = free_ports(3)
        self.address, self.url = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
        head = ["--head", f"--port={port}", "--num-cpus=0", f"--ray-client-server-port={client_port}"]
        head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--temp-dir={self._folder}"]
        self._start(*head, "--include-dashboard=true")
        self._wait(lambda: requests.get(f"{self.url}/api/version", timeout=5).status_code in (200, 401, 403))
        for number in range(self._num_workers):  # one by one: two that start at once take each other's ports
            self._start(f"--address={self.address}", "--num-cpus=2")
            self._wait(lambda number=number: self._num_alive() == number + 2)  # type: ignore[misc]

    def _start(self, *arguments: str) -> None:
        ports = free_ports(4)
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port", "node-manager-port")
        own = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        command = [shutil.which("ray", path=self.env["PATH"]) or "ray", "start", "--block", "--disable-usage-stats"]
        with (self._folder / f"node-{len(self._processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--object-store-memory=200000000", *own, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,
            )
        self._processes.append(process)

    def _num_alive(self) -> int:
        nodes = self.api("GET", "v0/nodes")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                if condition():
                    return
            except (requests.RequestException, KeyError, TypeError):
                pass
            dead = [process for process in self._processes if process.poll() is not None]
            if dead or time.monotonic() > deadline_s:
                logs = "\n".join(log.read_text() for log in sorted(self._folder.glob("node-*.log")))
                raise AssertionError(f"the cluster did not start:\n{logs}")
            time.sleep(0.3)

    def _stop(self) -> None:
        family = [child for process in self._processes for child in _descendants(process.pid)]
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, _STOP_S)
        for process in alive:  # Ray's own end takes half a minute
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self._processes:
            started.wait()
        self._processes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits while a process lives."""
    deadline_s = time.monotonic() + _CALL_S
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
