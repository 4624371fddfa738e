"""A connection to an address that was checked, under the host's name and certificate; it knows no proxy.

The host's addresses are looked up once and checked, and those are connected to, so that a name cannot lead elsewhere
between the two. A connection that is kept leads to the same address still.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress


class PinnedConnection(http.client.HTTPSConnection):
    """A connection whose reads end when their time is up.

    Args:
        host, port: named in requests and in the certificate.
        context: which certificates are trusted.
        addresses: looks them up and checks them; each is tried in turn.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext, addresses: Callable[[], Sequence[str]]) -> None:
        super().__init__(host, port, context=context)
        self._trusted = context
        self._addresses = addresses
        self._line: socket.socket | None = None  # the same connection below encryption
        self._end_s = 0.0
        self._guard = threading.Lock()

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._end_s

    @contextmanager
    def until(self, end_s: float) -> Iterator[None]:
        """Whatever is done inside ends by this time (`time.monotonic`).

        Raises:
            TimeoutError: it took longer, though it may look as if the server had ended it.
        """
        self._end_s = end_s
        if self.sock is not None:
            self.sock.settimeout(self._left_s())
        timer = threading.Timer(self._left_s(), self._cut)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        if self.is_late:
            raise TimeoutError

    def connect(self) -> None:
        """Connects to the first address that answers."""
        problem: OSError = OSError("the host has no address")
        for address in self._addresses():
            try:
                raw = socket.create_connection((address, self.port), timeout=self._left_s())
                break
            except OSError as error:
                problem = error
        else:
            raise problem
        with self._guard:
            self._line = raw.dup()
        if self.is_late:
            self._cut()
        self.sock = self._trusted.wrap_socket(raw, server_hostname=self.host)

    def finish(self) -> None:
        """Ends it. `close` is also called as soon as a response knows where it ends, and the rest is still to come."""
        self.close()
        with self._guard:
            line, self._line = self._line, None
        if line is not None:
            line.close()

    def _left_s(self) -> float:
        return max(0.001, self._end_s - time.monotonic())

    def _cut(self) -> None:
        with self._guard, suppress(OSError):
            if self._line is not None:
                self._line.shutdown(socket.SHUT_RDWR)
