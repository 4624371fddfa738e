"""Fetching from the web, against a real HTTPS server: what the list allows, and what it does not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.addresses import is_public
from ray_job.inputs.pictures.references import read_picture
from ray_job.spec import LimitsSpec
from tests.https import https_server, make_certificate, trust

LIMITS = LimitsSpec(max_image_bytes=1000)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(150):
                self.wfile.write(b"X-Drip: 1\r\n")
                time.sleep(0.1)
            return
        status = int(path[1:4]) if path[1:4].isdigit() else 200
        body = {"/large": b"x" * 1001, "/endless": b"x" * 5000}.get(path, b"picture" + query.encode())
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/ok")
        if path != "/endless":
            self.send_header("Content-Length", str(len(body) + (5 if path == "/short" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "server.pem")


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    with https_server(certificate, Handler) as port:
        yield port


@pytest.fixture
def host(port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's, trusted."""
    trust(certificate, monkeypatch)
    return f"localhost:{port}"


def refused(url: str, *allow_hosts: str, limits: LimitsSpec = LIMITS) -> RowError:
    with pytest.raises(RowError) as caught:
        read_picture(url, root=None, limits=limits, allow_hosts=allow_hosts)
    return caught.value


def test_a_listed_host_is_fetched_from(host: str) -> None:
    assert read_picture(f"https://{host}/ok", root=None, limits=LIMITS, allow_hosts=[host.upper()]) == b"picture"
    value = {"bytes": None, "path": f"https://{host}/ok?size=3"}
    assert read_picture(value, root=None, limits=LIMITS, allow_hosts=["other", host]) == b"picturesize=3"


def test_what_a_server_may_not_do(host: str) -> None:
    for path, code in {
        "302": ErrorCode.IMAGE_FORBIDDEN,
        "404": ErrorCode.IMAGE_MISSING,
        "403": ErrorCode.IMAGE_UNREADABLE,
        "503": ErrorCode.STORAGE,
        "429": ErrorCode.STORAGE,
        "large": ErrorCode.IMAGE_TOO_LARGE,
        "endless": ErrorCode.IMAGE_TOO_LARGE,
        "short": ErrorCode.STORAGE,
    }.items():
        error = refused(f"https://{host}/{path}?token=topsecret", host)
        assert error.code == code, path
        assert "topsecret" not in error.message
    started_s = time.monotonic()
    hurried = LIMITS.model_copy(update={"fetch_timeout_s": 1.0})
    assert "limits.fetch_timeout_s" in refused(f"https://{host}/slow", host, limits=hurried).message
    assert time.monotonic() - started_s < 10


def test_what_a_url_may_not_be(host: str) -> None:
    for url, listed in (
        (f"https://{host}/ok", "localhost"),  # another port
        (f"https://{host}/ok", "example.org"),
        (f"http://{host}/ok", host),
        (f"ftp://{host}/ok", host),
        (f"https://{host}@example.org/ok", host),
        (f"https://user:topsecret@{host}/ok", host),
        (f"https://example.org#@{host}/", host),
        ("https://[::1/x", "::1"),
        ("https://host:99999/", "host"),
    ):
        error = refused(url, listed)
        assert error.code == ErrorCode.IMAGE_FORBIDDEN, url
        assert "topsecret" not in error.message
    assert "input.allow_hosts" in refused(f"https://{host}/ok").message


def test_a_certificate_that_nobody_trusts_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert refused(f"https://{host}/ok", host).code == ErrorCode.IMAGE_FORBIDDEN


def test_private_addresses_are_refused_whatever_their_name(port: int) -> None:
    for name in (f"localhost:{port}", f"127.0.0.1:{port}"):
        error = refused(f"https://{name}/ok", name)
        assert (error.code, "private address" in error.message) == (ErrorCode.IMAGE_FORBIDDEN, True)
    for address in (
        "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "ff02::1", "::", "fec0::1",
        "198.18.0.1", "240.0.0.1", "192.88.99.1", "255.255.255.255", "192.0.2.1", "2001:db8::1", "100::1",
        # an IPv4 address inside: NAT64, IPv4-compatible, -mapped, -translated, 6to4, Teredo (server, client), ISATAP
        "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808",
        "::127.0.0.1", "::10.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "2002:a9fe:a9fe::1", "2002:c0a8:101::",
        "2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1",
    ):  # fmt: skip
        assert not is_public(address), address
    for address in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"):
        assert is_public(address), address


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["93.184.216.34", "10.0.0.1"], None),
        (["10.0.0.1", "93.184.216.34"], None),
        (["93.184.216.34", "::1"], None),
        (["2606:4700::1", "93.184.216.34"], ["2606:4700::1", "93.184.216.34"]),
    ],
)
def test_of_several_addresses_all_must_be_public_and_each_is_tried_in_turn(
    found: list[str], expected: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    tried: list[str] = []

    def connect(address: tuple[str, int], **_: object) -> socket.socket:
        tried.append(address[0])
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    error = refused("https://pictures.example/ok", "pictures.example")
    assert asked == ["pictures.example"], "looked up once: what was checked is what is connected to"
    assert tried == (expected or [])
    assert error.code == (ErrorCode.STORAGE if expected else ErrorCode.IMAGE_FORBIDDEN)
