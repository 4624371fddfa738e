"""Data sets in Hugging Face's cache: their pictures are links, which lead to blobs of the same repository only."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.references import read_picture
from ray_job.spec import LimitsSpec

from .conftest import opened, rows_of

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def snapshot(tmp_path: Path, png: bytes) -> Path:
    """As `snapshot_download` leaves it: every file a relative link."""
    repository = tmp_path / "hub" / "datasets--org--photos"
    folder = repository / "snapshots" / "0123abcd"
    (folder / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "picture").write_bytes(png)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_bytes(png)
    table = pa.table({"image": pa.array([{"bytes": None, "path": "images/1.png"}], IMAGE)})
    pq.write_table(table, repository / "blobs" / "table")
    (folder / "train.parquet").symlink_to("../../blobs/table")
    (folder / "images" / "1.png").symlink_to("../../../blobs/picture")
    return folder


def test_pictures_of_a_cached_repository_are_read(snapshot: Path, png: bytes) -> None:
    source = opened(snapshot / "train.parquet")
    (row,) = rows_of(source)
    assert row["row_id"] == "train.parquet#0"
    assert read_picture(row["image"], root=source.image_root, limits=LimitsSpec()) == png


@pytest.mark.parametrize(
    "target", ["../../../refs/main", "../../../../secret", "../../../../datasets--org--other/blobs/x"]
)
def test_links_to_anywhere_else_are_not_followed(snapshot: Path, target: str) -> None:
    link = snapshot / "images" / "2.png"
    link.symlink_to(target)
    reached = link.parent / target
    reached.parent.mkdir(parents=True, exist_ok=True)
    reached.write_bytes(b"secret")
    root = opened(snapshot / "train.parquet").image_root
    with pytest.raises(RowError) as caught:
        read_picture("images/2.png", root=root, limits=LimitsSpec())
    assert caught.value.code == ErrorCode.IMAGE_FORBIDDEN
    assert "set input.image_root" in str(caught.value)


@pytest.mark.data
def test_pictures_that_datasets_left_as_paths_need_a_root_and_are_read_with_it(tmp_path: Path, png: bytes) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png)
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "photos" / "a.png")]}).cast_column(
        "image", datasets.Image()
    )
    (tmp_path / "tables").mkdir()
    pq.write_table(data.data.table, tmp_path / "tables" / "a.parquet")
    source = opened(tmp_path / "tables" / "a.parquet")
    (row,) = rows_of(source)
    assert row["image"] == {"bytes": None, "path": str(tmp_path / "photos" / "a.png")}
    with pytest.raises(RowError, match=r"leads out of .*set input\.image_root to a folder that holds it"):
        read_picture(row["image"], root=source.image_root, limits=LimitsSpec())
    source = opened(tmp_path / "tables" / "a.parquet", input={"image_root": str(tmp_path / "photos")})
    assert read_picture(row["image"], root=source.image_root, limits=LimitsSpec()) == png
