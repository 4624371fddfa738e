"""Pictures from the web, for hosts on the user's list: https only, no redirects, no private addresses, bounded."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Collection
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urlsplit

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.addresses import is_public
from ray_job.inputs.pictures.connections import PinnedConnection
from ray_job.redaction.text import public_uri
from ray_job.spec import LimitsSpec
from ray_job.storage.places import reason

_PORT = 443
_SHOWN_CHARS = 200
_SMALL_BYTES = 2**16


class WebSession:
    """Fetches over connections that are kept for the next picture of the same host. Threads may share it.

    Args:
        allow_hosts: `name`, or `name:port` for another port than 443.
        limits: `max_image_bytes`, and `fetch_timeout_s` for all of a picture together.
    """

    def __init__(self, allow_hosts: Collection[str], limits: LimitsSpec) -> None:
        self._allow_hosts, self._limits = allow_hosts, limits
        self._idle: dict[tuple[str, int], list[PinnedConnection]] = {}
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.finish()
        self._idle.clear()

    def get(self, url: str) -> bytes:
        """The body behind a URL.

        Args:
            url: of any scheme; all but https are refused.

        Raises:
            RowError: IMAGE_FORBIDDEN, IMAGE_MISSING, IMAGE_TOO_LARGE, IMAGE_UNREADABLE, or STORAGE where trying again
                may help.
        """
        shown = repr(public_uri(url)[:_SHOWN_CHARS])
        parts, host, port = _checked(url, shown, self._allow_hosts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        end_s = time.monotonic() + self._limits.fetch_timeout_s
        connection = self._connection(host, port, shown)
        try:
            with connection.until(end_s):
                answer = _answer(connection, path, shown, self._limits.max_image_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.finish()
            if time.monotonic() >= end_s:
                raise RowError(ErrorCode.STORAGE, f"{shown}: took longer than limits.fetch_timeout_s") from None
            raise _failed(error, shown) from None
        except BaseException:
            connection.finish()
            raise
        self._keep(host, port, connection)
        if isinstance(answer, RowError):
            raise answer
        return answer

    def _connection(self, host: str, port: int, shown: str) -> PinnedConnection:
        with self._lock:
            self._context = self._context or ssl.create_default_context()
            if idle := self._idle.get((host, port)):
                return idle.pop()
        return PinnedConnection(host, port, self._context, lambda: _public_addresses(host, port, shown))

    def _keep(self, host: str, port: int, connection: PinnedConnection) -> None:
        if connection.sock is None:  # the server ends it, or something of its answer is still on its way
            connection.finish()
            return
        with self._lock:
            self._idle.setdefault((host, port), []).append(connection)


def _asked(connection: PinnedConnection, path: str) -> http.client.HTTPResponse:
    """The answer to a request; asked once more where the server has ended a connection that was kept."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "ray_job"}
    was_kept = connection.sock is not None
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse()
    except (http.client.BadStatusLine, ConnectionError, ssl.SSLError):
        if not was_kept or connection.is_late:
            raise
        connection.finish()
        connection.request("GET", path, headers=headers)
        return connection.getresponse()


def _answer(connection: PinnedConnection, path: str, shown: str, max_bytes: int) -> bytes | RowError:
    """The body, or what the status says instead; then its text is read too, so that the connection can be kept."""
    with _asked(connection, path) as response:
        problem = _status_problem(response.status, shown)
        if problem is None:
            return _body(response, shown, max_bytes)
        if response.length is not None and response.length <= _SMALL_BYTES:
            response.read()
        else:
            connection.finish()
        return problem


def _checked(url: str, shown: str, allow_hosts: Collection[str]) -> tuple[SplitResult, str, int]:
    """The URL's parts, host and port, once the list allows them."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or _PORT
    except ValueError as error:
        raise _forbidden(f"{shown} is no URL: {error}") from None
    if parts.scheme.lower() != "https":
        raise _forbidden(f"{shown} is not https; nothing else is fetched")
    if parts.username is not None or parts.password is not None:
        raise _forbidden(f"{shown} carries a user name or password; leave it out")
    if (host if port == _PORT else f"{host}:{port}") not in {name.lower() for name in allow_hosts}:
        raise _forbidden(f"{shown}: its host is not on the list input.allow_hosts")
    return parts, host, port


def _public_addresses(host: str, port: int, shown: str) -> list[str]:
    """The host's addresses; all of them must be public, or one asked for at another moment may be another."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    private = [address for address in addresses if not is_public(address)]
    if private:
        raise _forbidden(f"{shown} leads to the private address {private[0]}")
    return addresses


def _body(response: http.client.HTTPResponse, shown: str, max_bytes: int) -> bytes:
    """All of it, never more than the limit."""
    promised = response.length  # None where the server does not say
    body = response.read(max_bytes + 1) if promised is None or promised <= max_bytes else None
    if body is None or len(body) > max_bytes:
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, f"{shown} is larger than limits.max_image_bytes, {max_bytes}")
    if promised is not None and len(body) < promised:
        raise http.client.IncompleteRead(body, promised - len(body))
    return body


def _status_problem(status: int, shown: str) -> RowError | None:
    text = f"{shown} was answered with status {status}"
    if status == http.client.OK:
        return None
    if 300 <= status < 400:
        return _forbidden(f"{text}; redirects are not followed")
    if status in (http.client.NOT_FOUND, http.client.GONE):
        return RowError(ErrorCode.IMAGE_MISSING, text)
    if status in (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS) or status >= 500:
        return RowError(ErrorCode.STORAGE, text)
    return RowError(ErrorCode.IMAGE_UNREADABLE, text)


def _failed(error: Exception, shown: str) -> RowError:
    text = f"{shown}: {reason(error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _forbidden(f"{text}; its certificate is not trusted")
    if isinstance(error, ValueError):
        return RowError(ErrorCode.IMAGE_UNREADABLE, text)
    return RowError(ErrorCode.STORAGE, text)


def _forbidden(message: str) -> RowError:
    return RowError(ErrorCode.IMAGE_FORBIDDEN, message)
