"""Watches the two processes of Ray's that a driver cannot do without, and ends the job in order when one has died.

Ray's own core waits for its control process (gcs_server) for a minute and then ends the driver with exit code 1 and
not one line; calls into Ray hang until then. So the last words, and the exit code 75, come from a thread of ours.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ray_job.cluster.causes import RESUME
from ray_job.errors import ClusterLost, RayJobError
from ray_job.redaction.logs import logger_of

_ASK_INTERVAL_S = 1.0
_CONNECT_S = 5.0
_UNWIND_S = 5.0  # for the job's thread to raise by itself; it may hang in a call to the dead process
_RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which Ray's core ends this process
_RAYS_PATIENCE_S = 60.0
_RAYLET_PATIENCE_S = 3.0
_LOG = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that this one is connected to."""

    name: str
    host: str
    port: int
    patience_s: float  # how long it may be away: a control process can be restarted, a raylet cannot

    def is_there(self) -> bool:
        """Whether it accepts connections."""
        try:
            socket.create_connection((self.host, self.port), _CONNECT_S).close()
        except OSError:
            return False
        return True


class Liveness:
    """Ends the process with exit code 75 if Ray dies under the job and the job's own thread cannot end it.

    Use it in a `with` around all that may call Ray, its end included.

    Args:
        say: records how the job ended, on another thread, before the process ends.
    """

    def __init__(self, say: Callable[[ClusterLost], None]) -> None:
        self._say = say
        self._peers: list[Peer] = []
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, Ray is connected and should live. What Ray raises because it does not becomes `ClusterLost`."""
        self._peers = _peers()
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)
        self._thread.start()
        try:
            yield
        except Exception as error:
            lost = [] if isinstance(error, RayJobError) else [peer for peer in self._peers if not peer.is_there()]
            if lost:
                raise _died(lost) from error
            raise
        finally:
            # With a dead process, disconnecting may hang as well: then the watch goes on.
            if all(peer.is_there() for peer in self._peers):
                self._is_over.set()

    def _watch(self) -> None:
        lost = wait_for_loss(self._peers, self._is_over)
        if not lost or self._is_over.wait(_UNWIND_S):
            return
        error = _died(lost)
        with suppress(Exception):
            self._say(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(ClusterLost.exit_code)


def wait_for_loss(peers: Sequence[Peer], is_over: threading.Event) -> list[Peer]:
    """The peers that are away once one of them has been for longer than it may; none if the watch is over before."""
    since_s: dict[Peer, float] = {}
    while not is_over.wait(_ASK_INTERVAL_S):
        for peer in peers:
            if not peer.is_there():
                if peer not in since_s:
                    _LOG.warning("%s at %s:%d does not answer", peer.name, peer.host, peer.port)
                since_s.setdefault(peer, time.monotonic())
            elif since_s.pop(peer, None) is not None:
                _LOG.warning("%s answers again", peer.name)
        if any(time.monotonic() - away_s >= peer.patience_s for peer, away_s in since_s.items()):
            return list(since_s)
    return []


def _died(lost: Sequence[Peer]) -> ClusterLost:
    who = " and ".join(f"{peer.name} at {peer.host}:{peer.port}" for peer in lost)
    return ClusterLost(f"{who} died. {RESUME}")


def _peers() -> list[Peer]:
    """The control process, and the raylet of this machine."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    limit_s = float(os.environ.get(_RAYS_PATIENCE) or _RAYS_PATIENCE_S)
    peers = [
        Peer("Ray's control process (gcs_server)", host.strip("[]"), int(port), max(1.0, 0.75 * limit_s - _UNWIND_S))
    ]
    own = context.get_node_id()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] == own:
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            peers.append(Peer("this machine's raylet", address, port, _RAYLET_PATIENCE_S))
    return peers
