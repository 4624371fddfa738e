"""Fetching: what a row may say about a picture, and what no row may reach."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.inputs.pictures.references import read_picture
from ray_job.spec import LimitsSpec
from ray_job.storage.places import Location, locate

LIMITS = LimitsSpec(max_image_bytes=1000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b%20.png").write_bytes(b"picture")
    (folder / "empty.png").touch()
    (folder / "large.png").write_bytes(b"x" * 1001)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "x.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inner.png").symlink_to(folder / "sub" / "a b%20.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "out").symlink_to(tmp_path / "root2")
    os.mkfifo(folder / "pipe.png")
    return folder


def _error(value: Any, root: Path | str | None, limits: LimitsSpec = LIMITS) -> RowError:
    with pytest.raises(RowError) as caught:
        read_picture(value, root=None if root is None else locate(str(root)), limits=limits)
    assert caught.value.stage == Stage.PREPARE
    return caught.value


@pytest.mark.parametrize("num_bytes", [997, 998, 999, 1000])
def test_a_data_uri_of_the_largest_size_is_read(num_bytes: int) -> None:
    expected = (b"\xfb\xff" * 500)[:num_bytes]
    text = base64.b64encode(expected).decode()
    for payload in (text, "".join(f"%{ord(character):02X}" for character in text)):
        assert read_picture(f"data:image/png;base64,{payload}", root=None, limits=LIMITS) == expected
    over = base64.b64encode(bytes(1001 + num_bytes % 3)).decode()
    assert _error(f"data:image/png;base64,{over}", None).code == ErrorCode.IMAGE_TOO_LARGE


def test_bytes_paths_and_uris_become_bytes(root: Path) -> None:
    uri = (root / "sub" / "a b%20.png").as_uri()
    for value in (
        b"picture",
        bytearray(b"picture"),
        {"bytes": b"picture", "path": "../ignored"},
        {"bytes": None, "path": "sub/a b%20.png"},
        "sub/a b%20.png",
        "./sub/../sub/a b%20.png",
        "inner.png",
        str(root / "sub" / "a b%20.png"),
        uri,
        "data:image/png;base64," + base64.b64encode(b"picture").decode(),
        "data:image/png;base64," + base64.b64encode(b"picture").decode().replace("=", "%3D"),
    ):
        assert read_picture(value, root=locate(str(root)), limits=LIMITS) == b"picture", value


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, ErrorCode.IMAGE_MISSING),
        ({"bytes": None, "path": None}, ErrorCode.IMAGE_MISSING),
        ("", ErrorCode.IMAGE_MISSING),
        ("none.png", ErrorCode.IMAGE_MISSING),
        ("sub", ErrorCode.IMAGE_MISSING),
        ("empty.png/x", ErrorCode.IMAGE_MISSING),
        ("pipe.png", ErrorCode.IMAGE_MISSING),
        ("loop.png", ErrorCode.IMAGE_MISSING),
        ("x" * 300, ErrorCode.IMAGE_MISSING),
        ("x/" * 3000, ErrorCode.IMAGE_MISSING),
        ("a\0b", ErrorCode.IMAGE_MISSING),
        (b"", ErrorCode.IMAGE_EMPTY),
        ({"bytes": b"", "path": "sub/a b%20.png"}, ErrorCode.IMAGE_EMPTY),
        ("empty.png", ErrorCode.IMAGE_EMPTY),
        ("data:image/png;base64,", ErrorCode.IMAGE_EMPTY),
        (b"x" * 1001, ErrorCode.IMAGE_TOO_LARGE),
        ("large.png", ErrorCode.IMAGE_TOO_LARGE),
        ("data:image/png;base64," + "A" * 1400, ErrorCode.IMAGE_TOO_LARGE),
        ("../secret.png", ErrorCode.IMAGE_FORBIDDEN),
        ("sub/../../secret.png", ErrorCode.IMAGE_FORBIDDEN),
        ("../root2/x.png", ErrorCode.IMAGE_FORBIDDEN),
        ("/etc/passwd", ErrorCode.IMAGE_FORBIDDEN),
        ("file:///etc/passwd", ErrorCode.IMAGE_FORBIDDEN),
        ("file:///etc/%70asswd", ErrorCode.IMAGE_FORBIDDEN),
        ("link.png", ErrorCode.IMAGE_FORBIDDEN),
        ("out/x.png", ErrorCode.IMAGE_FORBIDDEN),
        ("http://127.0.0.1/x.png", ErrorCode.IMAGE_FORBIDDEN),
        ("HTTPS://host/x.png", ErrorCode.IMAGE_FORBIDDEN),
        ("s3://bucket/x.png", ErrorCode.IMAGE_FORBIDDEN),
        ("data:image/png,plain", ErrorCode.IMAGE_UNREADABLE),
        ("data:image/png;base64,A A=", ErrorCode.IMAGE_UNREADABLE),
        ("data:image/png;base64,QU*JD", ErrorCode.IMAGE_UNREADABLE),
        ("data:image/png;base64,QUJDR", ErrorCode.IMAGE_UNREADABLE),
        ("data:image/svg+xml;utf8,<svg/>", ErrorCode.IMAGE_UNREADABLE),
        ("data:image/png;base64,ü", ErrorCode.IMAGE_UNREADABLE),
        ({"url": "x"}, ErrorCode.ROW_MALFORMED),
        (17, ErrorCode.ROW_MALFORMED),
    ],
)
def test_what_cannot_be_fetched_says_why(root: Path, value: Any, code: ErrorCode) -> None:
    error = _error(value, root)
    assert error.code == code
    assert len(error.message) < 700


def test_without_a_root_only_embedded_pictures_count(root: Path) -> None:
    assert read_picture(b"picture", root=None, limits=LIMITS) == b"picture"
    error = _error(str(root / "inner.png"), None)
    assert error.code == ErrorCode.IMAGE_FORBIDDEN
    assert "input.image_root" in error.message


@given(st.text())
def test_no_text_makes_fetch_crash_or_leave_the_root(text: str) -> None:
    root = locate("/nonexistent/root")
    with pytest.raises(RowError):
        read_picture(text, root=root, limits=LIMITS)


def test_pictures_on_s3(s3: Callable[[str, bytes], str]) -> None:
    uri = s3("in/a b.png", b"picture")
    s3("in/empty.png", b"")
    s3("in/large.png", b"x" * 1001)
    s3("other/secret.png", b"secret")
    root = locate("s3://pictures/in")
    for value in ("a b.png", uri, "s3a://pictures/in/a%20b.png", {"bytes": None, "path": "a b.png"}):
        assert read_picture(value, root=root, limits=LIMITS) == b"picture"
    for value, code in {
        "none.png": ErrorCode.IMAGE_MISSING,
        "empty.png": ErrorCode.IMAGE_EMPTY,
        "large.png": ErrorCode.IMAGE_TOO_LARGE,
        "../other/secret.png": ErrorCode.IMAGE_FORBIDDEN,
        "s3://pictures/other/secret.png": ErrorCode.IMAGE_FORBIDDEN,
        "s3://inside/in/x.png": ErrorCode.IMAGE_FORBIDDEN,
        "/etc/passwd": ErrorCode.IMAGE_FORBIDDEN,
        "file:///etc/passwd": ErrorCode.IMAGE_FORBIDDEN,
    }.items():
        assert _error(value, "s3://pictures/in").code == code, value


def test_a_storage_that_does_not_answer_may_be_tried_again() -> None:
    once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
    nobody = "http://127.0.0.1:9"
    secrets = {"access_key": "key", "secret_key": "topsecret", "region": "us-east-1"}
    filesystem = fs.S3FileSystem(**secrets, endpoint_override=nobody, retry_strategy=once)
    with pytest.raises(RowError) as caught:
        read_picture("a.png", root=Location(filesystem, "pictures/in", "s3"), limits=LIMITS)
    assert caught.value.code == ErrorCode.STORAGE
    assert caught.value.is_retryable
    assert "topsecret" not in caught.value.message
