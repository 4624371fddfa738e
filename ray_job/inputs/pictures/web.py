"""Pictures from the web, for hosts on the user's list: https only, no redirects, no private addresses, bounded.

The address is looked up once, checked, and connected to, so that a name cannot lead elsewhere between the two.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from urllib.parse import SplitResult, urlsplit

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.addresses import is_public
from ray_job.redaction.text import public_uri
from ray_job.spec import LimitsSpec
from ray_job.storage.places import reason

_PORT = 443
_SHOWN_CHARS = 200


def fetch_url(url: str, allow_hosts: Collection[str], limits: LimitsSpec) -> bytes:
    """The body behind a URL.

    Args:
        url: of any scheme; all but https are refused.
        allow_hosts: `name`, or `name:port` for another port than 443.
        limits: `max_image_bytes`, and `fetch_timeout_s` for all of it together.

    Raises:
        RowError: IMAGE_FORBIDDEN, IMAGE_MISSING, IMAGE_TOO_LARGE, IMAGE_UNREADABLE, or STORAGE where trying again may
            help.
    """
    shown = repr(public_uri(url)[:_SHOWN_CHARS])
    parts, host, port = _checked(url, shown, allow_hosts)
    connection = _PinnedConnection(host, port, shown, limits.fetch_timeout_s)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "ray_job"})
        with connection.getresponse() as response:
            _check_status(response.status, shown)
            body = _body(response, shown, limits.max_image_bytes)
        if connection.is_late:  # it may look as if the server had ended it
            raise TimeoutError
        return body
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection.is_late:
            raise RowError(ErrorCode.STORAGE, f"{shown}: took longer than limits.fetch_timeout_s") from None
        raise _failed(error, shown) from None
    finally:
        connection.finish()


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


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to the address that was checked, under the host's name and certificate; knows no proxy.

    When its time is over, whatever is being read ends.
    """

    def __init__(self, host: str, port: int, shown: str, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._shown = shown
        self._cut = ExitStack()
        self._end_s = time.monotonic() + timeout_s

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._end_s

    def connect(self) -> None:
        address = _public_address(self.host, self.port, self._shown)
        raw = socket.create_connection((address, self.port), timeout=self.timeout)
        line = self._cut.enter_context(raw.dup())
        timer = threading.Timer(max(0.0, self._end_s - time.monotonic()), line.shutdown, [socket.SHUT_RDWR])
        timer.start()
        self._cut.callback(timer.cancel)
        self.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=self.host)

    def finish(self) -> None:
        """Closes it for good; `close` is called as soon as a response knows where it ends."""
        self._cut.close()
        self.close()


def _public_address(host: str, port: int, shown: str) -> str:
    """An address of the host; all of them must be public, or one asked for at another moment may be another."""
    addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    private = [address for address in addresses if not is_public(address)]
    if private:
        raise _forbidden(f"{shown} leads to the private address {private[0]}")
    return addresses[0]


def _body(response: http.client.HTTPResponse, shown: str, max_bytes: int) -> bytes:
    """All of it, never more than the limit."""
    promised = response.length  # None where the server does not say
    body = response.read(max_bytes + 1) if promised is None or promised <= max_bytes else None
    if body is None or len(body) > max_bytes:
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, f"{shown} is larger than limits.max_image_bytes, {max_bytes}")
    if promised is not None and len(body) < promised:
        raise http.client.IncompleteRead(body, promised - len(body))
    return body


def _check_status(status: int, shown: str) -> None:
    if status == http.client.OK:
        return
    text = f"{shown} was answered with status {status}"
    if 300 <= status < 400:
        raise _forbidden(f"{text}; redirects are not followed")
    if status in (http.client.NOT_FOUND, http.client.GONE):
        raise RowError(ErrorCode.IMAGE_MISSING, text)
    if status in (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS) or status >= 500:
        raise RowError(ErrorCode.STORAGE, text)
    raise RowError(ErrorCode.IMAGE_UNREADABLE, text)


def _failed(error: Exception, shown: str) -> RowError:
    text = f"{shown}: {reason(error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _forbidden(f"{text}; its certificate is not trusted")
    if isinstance(error, ValueError):
        return RowError(ErrorCode.IMAGE_UNREADABLE, text)
    return RowError(ErrorCode.STORAGE, text)


def _forbidden(message: str) -> RowError:
    return RowError(ErrorCode.IMAGE_FORBIDDEN, message)
