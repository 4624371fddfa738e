"""Finding the input: places, globs, formats, and messages without secrets."""

from __future__ import annotations

import fnmatch
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_job.errors import InputError
from ray_job.inputs.files import find_files
from ray_job.redaction.text import without_secrets
from ray_job.spec import InputSpec
from ray_job.storage.globs import glob_pattern
from ray_job.storage.places import expand, list_files, locate, open_input, parse_uri

from .conftest import ids_of, opened


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def _names(pattern: str) -> list[str]:
    base, infos = expand(locate(pattern))
    return [info.path[len(base.path) + 1 :] for info in infos]


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("a/../b").path == str(tmp_path / "b")
    assert locate((tmp_path / "a b%").as_uri()).path == str(tmp_path / "a b%")
    assert locate("~").path == os.path.expanduser("~")
    assert str(locate("b")) == str(tmp_path / "b")


def test_globs(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.x", "a/2.y", "a/b/3.x", "c/4.x", "5.x", "odd[1].x")
    assert _names(f"{tmp_path}/*.x") == ["5.x", "odd[1].x"]
    assert _names(f"{tmp_path}/*/*.x") == ["a/1.x", "c/4.x"]
    assert _names(f"{tmp_path}/**/*.x") == ["5.x", "a/1.x", "a/b/3.x", "c/4.x", "odd[1].x"]
    assert _names(f"{tmp_path}/a/**") == ["1.x", "2.y", "b/3.x"]
    assert _names(f"{tmp_path}/[!a]") == ["c/4.x"], "a folder that matches stands for its files"
    assert _names(f"{tmp_path}/?.x") == ["5.x"]
    assert _names(f"{tmp_path}/odd[1].x") == ["odd[1].x"], "a name that exists is no glob"
    assert [info.path for info in list_files(locate(str(tmp_path / "a")), recursive=False)] == [
        str(tmp_path / "a" / name) for name in ("1.x", "2.y")
    ]
    with pytest.raises(InputError, match="nothing matches"):
        _names(f"{tmp_path}/*.z")
    for odd in ("[z-a]*", "[a", "[]", "[!]", "[z-a", "[[:alpha:]*", "[\\", "*[", "[--", "[]-a]", "***", "**[", "[^"):
        with pytest.raises(InputError, match=r"nothing matches|no such file"):
            _names(f"{tmp_path}/{odd}q.z")
    with pytest.raises(InputError, match="no such file or folder"):
        _names(f"{tmp_path}/z")


SET_CHARACTERS = st.text("abz-!^]\\[/x.", max_size=5)


@given(body=SET_CHARACTERS, name=st.text("abz-!^]\\[x.", min_size=1, max_size=2))
@example(body="z-a", name="m")
@example(body="!z-a", name="m")
@example(body="]a", name="]")
@example(body="a-", name="-")
@example(body="--a", name="Z")
@example(body="\\", name="\\")
def test_sets_match_as_in_shells(body: str, name: str) -> None:
    """As `fnmatch` reads them, except that no set holds a slash, and that `^` turns one round too."""
    glob = f"x[{body}]*"
    if "/" not in body and not body.startswith("^"):
        expected = fnmatch.fnmatchcase(f"x{name}", glob)
        assert bool(glob_pattern(glob).fullmatch(f"x{name}")) == expected
    assert not glob_pattern(f"x[{body}]y").fullmatch("x/y")


def test_secrets_never_show(s3: Callable[[str, bytes], str]) -> None:
    uri = s3("x.parquet", b"text")
    secret = uri.replace("s3://", "s3://AKIA:se%2Fcret@") + "?region=us-east-1"
    location = locate(secret)
    assert str(location) == uri
    assert "cret" not in repr(location)
    for bad in (secret, secret + "&nonsense=cret", "s3://AKIA:se/cret@bucket/x", "nosuch://a:cret@host/x?k=cret"):
        with pytest.raises(InputError) as caught:
            opened(bad)
        assert "cret" not in str(caught.value), bad
    assert without_secrets("in s3://a:b/c@d/e and s3://x/y?k=v.") == "in s3://d/e and s3://x/y"


def test_locations_travel(s3: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    location = locate(s3("a b/c%d", b"content"))
    assert location.path == "pictures/a b/c%d"
    shipped = pickle.dumps(location)
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # the worker's environment may lack it
    assert open_input(pickle.loads(shipped)).read() == b"content"
    assert pickle.loads(pickle.dumps(locate("/x"))) == locate("/x")
    assert parse_uri(location.reference) == ("s3", location.path)


@given(st.text())
def test_locating_any_text_gives_a_place_or_an_input_error(text: str) -> None:
    assert parse_uri(text) is None or "://" in text
    if not text.startswith(("hdfs", "viewfs")):
        try:
            locate(text)
        except InputError:
            assert "://" in text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.parquet", "b/c.PQ", "_SUCCESS", "_delta/d.parquet"], "parquet"),
        (["a.jsonl", "b.ndjson", "notes.txt"], "jsonl"),
        (["a.jsonl.gz"], "jsonl"),
        (["a.png", "b/c.JPEG"], "images"),
        (["a.png", "metadata.parquet", "sub/metadata.jsonl"], "images"),
        (["metadata.jsonl", "b.jsonl"], "jsonl"),
    ],
)
def test_the_format_follows_from_suffixes(tmp_path: Path, names: list[str], expected: str) -> None:
    assert find_files(InputSpec(path=(str(_touch(tmp_path, *names)),))).format == expected


@pytest.mark.parametrize(
    "suffix",
    [
        "parquet",
        "pq",
        "jsonl",
        "ndjson",
        "jsonl.gz",
        "ndjson.gz",
        "jpg",
        "jpeg",
        "png",
        "webp",
        "bmp",
        "gif",
        "tif",
        "TIFF",
    ],
)
def test_every_suffix_is_found_in_a_folder(tmp_path: Path, suffix: str) -> None:
    found = find_files(InputSpec(path=(str(_touch(tmp_path, f"a.{suffix}", "notes.txt")),)))
    assert ([file.name for file in found.files], found.skipped.num_files) == ([f"a.{suffix}"], 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.parquet", "b.png"], r"several formats \(1 parquet, 1 images\); set input\.format"),
        (["a.txt"], r"no file is known to hold rows; found 1 file: .*\(a\.txt\)"),
        ([], "the folder holds no files"),
    ],
)
def test_an_unclear_format_asks(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_files(InputSpec(path=(str(_touch(tmp_path, *names)),)))


def test_a_given_format_picks_its_files_and_takes_a_named_one(tmp_path: Path) -> None:
    _touch(tmp_path, "t.parquet", "p.png", "lines.txt")
    found = find_files(InputSpec(path=(str(tmp_path),), format="images"))
    assert ([file.name for file in found.files], found.skipped.num_files) == (["p.png"], 2)
    named = find_files(InputSpec(path=(str(tmp_path / "lines.txt"),), format="jsonl"))
    assert [file.name for file in named.files] == ["lines.txt"]
    with pytest.raises(InputError, match="no jsonl files"):
        find_files(InputSpec(path=(str(tmp_path),), format="jsonl"))


def test_inputs_of_several_storages_are_refused(s3: Callable[[str, bytes], str], tmp_path: Path) -> None:
    uri = s3("x.jsonl", b"{}")
    _touch(tmp_path, "y.jsonl")
    with pytest.raises(InputError, match="different storages"):
        opened([uri, tmp_path])


def test_only_the_top_of_the_storage_in_common_is_no_root_for_pictures(tmp_path: Path) -> None:
    spec = InputSpec(path=(str(tmp_path),))
    folder = _touch(tmp_path, "x.jsonl")
    found = find_files(InputSpec(path=(str(folder), "/proc/version"), format="jsonl"))
    assert found.image_root(spec) is None
    assert found.files[1].name == "proc/version"


def test_empty_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="holds no JSON object"):
        ids_of(opened(tmp_path / "a.jsonl"))


def test_a_path_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(InputError, match=r"'\\udcff\.csv': the path is not UTF-8"):
        find_files(InputSpec(path=("\udcff.csv",)))
