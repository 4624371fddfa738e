"""Base64 without `data:` is a picture, and a path is never taken for one."""

from __future__ import annotations

import base64
import json
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_job import JobSpec
from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.embedded import is_base64_picture
from ray_job.inputs.pictures.fetching import reference_of
from ray_job.inputs.pictures.references import read_picture
from ray_job.inputs.source import iter_tables
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import arrays_of
from ray_job.spec import LimitsSpec
from ray_job.stages.open_job import open_job
from ray_job.storage.places import locate

from .conftest import encoded, noise

LIMITS = LimitsSpec()
PICTURES = {
    kind: encoded(image, kind)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
    for image in (noise(),)
} | {"dot": encoded(Image.new("L", (1, 1)), "GIF"), "JFIF-less": encoded(noise(), "JPEG").replace(b"JFIF", b"AAAA")}
SPELLINGS = {
    "standard": lambda data: base64.b64encode(data).decode(),
    "url-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "without padding": lambda data: base64.b64encode(data).decode().rstrip("="),
    "in lines": lambda data: base64.encodebytes(data).decode(),
    "in lines of Windows": lambda data: "\r\n".join(textwrap.wrap(base64.b64encode(data).decode(), 64)),
    "with space around": lambda data: f"  \n{base64.b64encode(data).decode()}\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", PICTURES)
def test_base64_of_a_picture_is_the_picture(name: str, spelling: str, tmp_path: Path) -> None:
    text = SPELLINGS[spelling](PICTURES[name])
    for value in (text, {"bytes": text, "path": None}, {"bytes": None, "path": text}, text.encode()):
        for root in (None, locate(str(tmp_path))):
            assert read_picture(value, root=root, limits=LIMITS) == PICTURES[name]
        assert reference_of(value) is None, "nothing is fetched"


@pytest.mark.parametrize("media", ["image/png", "", "image/jpeg;charset=utf-8", "image/png;name=" + "n" * 300])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_base64_in_a_data_uri_is_as_base64_without_one(spelling: str, media: str) -> None:
    text = SPELLINGS[spelling](PICTURES["PNG"])
    for uri in (f"data:{media};base64,{text}", f" \ndata:{media}; base64, {text}", f"DATA:{media};BASE64,{text}"):
        for value in (uri, {"bytes": None, "path": uri}, uri.encode()):
            if not isinstance(value, bytes) or uri[:1] != " ":
                assert read_picture(value, root=None, limits=LIMITS) == PICTURES["PNG"]
        assert reference_of(uri) is None, "nothing is fetched"


def test_a_percent_encoded_picture_is_a_picture() -> None:
    uri = f"data:image/png,{quote_from_bytes(PICTURES['PNG'])}"
    assert read_picture(uri, root=None, limits=LIMITS) == PICTURES["PNG"]


@pytest.mark.parametrize("num_missing", [0, 1, 2])
def test_every_remainder_of_bytes(num_missing: int) -> None:
    data = PICTURES["JPEG"][: len(PICTURES["JPEG"]) // 3 * 3 - num_missing]
    for spell in SPELLINGS.values():
        assert read_picture(spell(data), root=None, limits=LIMITS) == data


def test_bytes_that_only_begin_like_base64_stay_as_they_are() -> None:
    text = base64.b64encode(PICTURES["PNG"])
    for data in (text + b"!", text[:400] + b"\xff" + text[400:], b"P5 2 1 255\nAB", PICTURES["PNG"]):
        assert read_picture(data, root=None, limits=LIMITS) == data


def test_a_megabyte_of_spaces_takes_no_time() -> None:
    head = base64.b64encode(PICTURES["PNG"]).decode()[:400]
    assert not is_base64_picture(head + " " * 2**20 + "!")  # tried from every space it would take hours
    assert not is_base64_picture(head + "= " * 2**20 + "A")


PATHS = [
    "a.jpg",
    "/9j/photos/2024/one.jpg",
    "9j/4AAQSkZJRgABAQ",
    "iVBORw0KGgo",
    "iVBORw0KGgo/AAAANSUhEUg.png",
    "photos/" * 20 + "picture",
    "x/" * 3000,
    "a" * 300,
    "0123456789abcdef" * 4,  # a hash
    "Qk" + "folder/" * 10 + "name",
    "UDUK/" + "abc/" * 12,
    "s3://bucket/iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "https://host/9j/4AAQSkZJRgABAQAAAQABAAD",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
def test_a_path_is_a_path(path: str) -> None:
    assert not is_base64_picture(path)
    assert reference_of(path) == path


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=1), min_size=1))
def test_names_without_a_suffix_are_paths(parts: list[str]) -> None:
    assert not is_base64_picture("/".join(parts))


def test_a_file_that_is_there_wins(tmp_path: Path) -> None:
    text = base64.b64encode(PICTURES["dot"]).decode().rstrip("=")
    file = tmp_path / text
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"the file")
    assert read_picture(text, root=locate(str(tmp_path)), limits=LIMITS) == b"the file"
    assert read_picture(text, root=None, limits=LIMITS) == PICTURES["dot"]


def test_base64_over_the_limit_is_refused() -> None:
    text = base64.b64encode(PICTURES["PNG"]).decode()
    for spelling in (text, text + "\n"):
        with pytest.raises(RowError) as caught:
            read_picture(spelling, root=None, limits=LimitsSpec(max_image_bytes=len(PICTURES["PNG"]) - 1))
        assert caught.value.code == ErrorCode.IMAGE_TOO_LARGE
        assert read_picture(spelling, root=None, limits=LimitsSpec(max_image_bytes=len(PICTURES["PNG"])))


def test_base64_cut_within_a_byte_says_so() -> None:
    text = base64.b64encode(PICTURES["PNG"]).decode().rstrip("=")
    text = text[: len(text) // 4 * 4 - 3]
    with pytest.raises(RowError, match="not a whole number of bytes") as caught:
        read_picture(text, root=None, limits=LIMITS)
    assert caught.value.code == ErrorCode.IMAGE_UNREADABLE


def prepared(path: Path, **sections: Any) -> dict[str, Any]:
    """Each row's first sample with its pictures, by id."""
    model = {"path": "builtin:noop", "num_crops": 1}
    spec = JobSpec.from_dict({"model": model, "output": {"path": "unused"}, "input": {"path": str(path)}, **sections})
    _, source, preparer = open_job(spec)
    rows = [row for table in iter_tables(source, 64) for row in preparer.values(table)]
    return {row["row_id"]: preparer.row(row) for row in rows}


def test_base64_wherever_a_row_has_pictures(tmp_path: Path) -> None:
    text = base64.b64encode(PICTURES["PNG"]).decode()
    uri = "data:image/png;base64," + text
    values = {"text": text, "list": [text, text], "uri": uri, "struct": {"bytes": text, "path": None}}
    lines = [json.dumps({"custom_id": name, "image": value}) for name, value in values.items()]
    for name, link in {"url": {"url": text}, "plain": text}.items():
        content = [{"type": "image_url", "image_url": link}, {"type": "text", "text": "What?"}]
        lines.append(json.dumps({"custom_id": name, "messages": [{"role": "user", "content": content}]}))
    plain, chats = tmp_path / "plain.jsonl", tmp_path / "chats.jsonl"
    plain.write_text("\n".join(lines[:4]))
    chats.write_text("\n".join(lines[4:]))
    rows = prepared(plain, prompt={"template": "What?"})
    rows |= prepared(chats, prompt={"messages_column": "messages"})
    assert set(rows) == {*values, "url", "plain"}
    expected = rows["uri"].pictures[0]
    for name, row in rows.items():
        assert [sample["error"] for sample in row.samples] == [None], name
        assert row.pictures == [expected] * (2 if name == "list" else 1)


def test_base64_in_a_column_of_text(tmp_path: Path) -> None:
    texts = [SPELLINGS[name](PICTURES["JPEG"]) for name in SPELLINGS]
    pq.write_table(pa.table({"id": list(SPELLINGS), "image": texts}), tmp_path / "in.parquet")
    source = {"path": str(tmp_path / "in.parquet"), "id_column": "id"}
    rows = prepared(tmp_path / "in.parquet", input=source, prompt={"template": "What?"})
    assert {name: row.samples[0]["error"] for name, row in rows.items()} == dict.fromkeys(SPELLINGS)
    pixels = [arrays_of(row.pictures[0]["arrays"])[PIXELS] for row in rows.values()]
    assert all((each == pixels[0]).all() for each in pixels)
