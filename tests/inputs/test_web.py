"""Fetching from the web, against a real HTTPS server: what the list allows, and what it does not."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs import web
from ray_job.inputs.references import fetch
from ray_job.spec import LimitsSpec

LIMITS = LimitsSpec(max_image_bytes=1000, fetch_timeout_s=1.0)
is_public = web._is_public


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(40):
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
    """Of `localhost`, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def host(port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's, its certificate trusted, and this machine's own address taken for a public one."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(web, "_is_public", lambda address: ipaddress.ip_address(address).is_loopback)
    return f"localhost:{port}"


def refused(url: str, *allow_hosts: str, limits: LimitsSpec = LIMITS) -> RowError:
    with pytest.raises(RowError) as caught:
        fetch(url, root=None, limits=limits, allow_hosts=allow_hosts)
    return caught.value


def test_a_listed_host_is_fetched_from(host: str) -> None:
    assert fetch(f"https://{host}/ok", root=None, limits=LIMITS, allow_hosts=[host.upper()]) == b"picture"
    value = {"bytes": None, "path": f"https://{host}/ok?size=3"}
    assert fetch(value, root=None, limits=LIMITS, allow_hosts=["other", host]) == b"picturesize=3"


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
    assert "limits.fetch_timeout_s" in refused(f"https://{host}/slow", host).message
    assert time.monotonic() - started_s < 3


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
        "::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "ff02::1",
    ):  # fmt: skip
        assert not is_public(address), address
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")
