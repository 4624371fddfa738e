"""Delta, Iceberg and Lance, written by their own libraries: no deleted row is delivered, versions are chosen once."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import InputError, SpecError
from ray_job.inputs.identity import input_identity
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from tests.jobs_here import run_here

from .conftest import ids_of, opened, rows_of

pytestmark = pytest.mark.data
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def numbered(num_rows: int, start: int = 0, **more: Any) -> pa.Table:
    rows = range(start, start + num_rows)
    return pa.table(
        {
            "n": pa.array(rows, pa.int64()),
            "text": pa.array([f"text {row}" for row in rows], pa.string()),
            "image": pa.array([b"picture %d" % row for row in rows], pa.binary()),
            **more,
        }
    )


def numbers_of(path: Path, **input_: Any) -> list[int]:
    return [row["n"] for row in rows_of(opened(path, template="{n} {text}", input=input_))]


class TestDelta:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("deltalake")

    @staticmethod
    def written(path: Path, table: pa.Table, **options: Any) -> Path:
        from deltalake import write_deltalake

        write_deltalake(str(path), table, **options)
        return path

    def test_a_table_is_read_at_its_newest_version_or_the_one_asked_for(self, tmp_path: Path) -> None:
        from deltalake import DeltaTable

        path = self.written(tmp_path / "table", numbered(5))
        self.written(path, numbered(5, 5), mode="append")
        DeltaTable(str(path)).delete("n = 3")
        assert sorted(numbers_of(path)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert sorted(numbers_of(path, version=1)) == list(range(10))
        assert numbers_of(path, version="0") == list(range(5))
        source = opened(path, template="{n}")
        assert (source.version, source.image_columns) == (2, ("image",))
        assert source.taken == "the delta table, version 2"
        for row in rows_of(source):
            name, position = row["row_id"].split("#")
            assert pq.read_table(path / name).column("n")[int(position)].as_py() == row["n"]
        assert ids_of(source) == ids_of(opened(path, template="{n}"))
        with pytest.raises(InputError, match="version 7: cannot be opened"):
            opened(path, input={"version": 7})

    def test_the_version_is_settled_once_and_part_of_the_inputs_identity(self, tmp_path: Path) -> None:
        path = self.written(tmp_path / "table", numbered(5))
        data = {"input": {"path": str(path)}, "prompt": {"template": "{n}"}, "output": {"path": "out"}}
        data["model"] = {"path": "builtin:noop"}
        spec, source, _ = open_job(JobSpec.from_dict(data))
        assert spec.input.version == 0
        self.written(path, numbered(5), mode="append")
        _, again, _ = open_job(spec)
        _, newest, _ = open_job(JobSpec.from_dict(data))
        assert (again.num_rows, newest.num_rows) == (5, 10)
        assert input_identity(again) == input_identity(source) != input_identity(newest)
        assert [row["n"] for row in rows_of(source)] == list(range(5)), "a plan made before is read as it was made"

    @pytest.mark.cluster
    def test_new_rows_are_appended_and_a_finished_run_is_not_resumed_with_them(
        self, tmp_path: Path, local_ray: None
    ) -> None:
        path = self.written(tmp_path / "table", numbered(5))
        data: dict[str, Any] = {"input": {"path": str(path)}, "prompt": {"template": "{n}"}}
        data |= {"model": {"path": "builtin:noop"}, "output": {"path": str(tmp_path / "out")}}
        run_here(JobSpec.from_dict(data))
        manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
        assert manifest["spec"]["input"]["version"] == 0
        self.written(path, numbered(3, 5), mode="append")
        data["output"]["mode"] = "resume"
        with pytest.raises(SpecError, match="is finished, and 3 rows of the input are new; use --mode append"):
            run_here(JobSpec.from_dict(data))
        data["input"]["version"] = 0
        run_here(JobSpec.from_dict(data))
        data["output"]["mode"] = "append"
        del data["input"]["version"]
        run_here(JobSpec.from_dict(data))
        rows = [row for part in (tmp_path / "out").glob("*/part-*") for row in pq.read_table(part).to_pylist()]
        assert sorted(row["n"] for row in rows) == list(range(8))
        assert len({row["row_id"] for row in rows}) == 8
        assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["spec"]["input"]["version"] == 1

    @pytest.mark.parametrize("kind", ["inline", "file"])
    def test_rows_of_deletion_vectors_are_not_delivered(self, tmp_path: Path, kind: str) -> None:
        """`deltalake` reads them and does not write them: these are written by the Delta protocol."""
        options = {"configuration": {"delta.enableDeletionVectors": "true"}, "partition_by": ["part"]}
        table = numbered(10_000, part=pa.array(["a b/ü"] * 10_000))
        path = self.written(tmp_path / "table", table, **options)
        delete_rows(path, [3, 7, 4095, 9999], kind)
        source = opened(path, template="{n}", input={"keep_columns": ["part"]})
        assert source.num_rows == 9996
        rows = rows_of(source, 256)
        expected = [row for row in range(10_000) if row not in (3, 7, 4095, 9999)]
        assert [row["n"] for row in rows] == expected
        assert [row["row_id"].rpartition("#")[2] for row in rows] == [str(row) for row in expected]
        assert {row["part"] for row in rows} == {"a b/ü"}
        assert opened(path, template="{n}", input={"version": 0}).num_rows == 10_000
        assert opened(path, template="{n}", input={"limit": 9}).num_rows == 9

    def test_damaged_rows_are_errors_and_deleted_ones_are_not_delivered(self, tmp_path: Path) -> None:
        options = {"configuration": {"delta.enableDeletionVectors": "true"}, "partition_by": ["part"]}
        path = self.written(tmp_path / "table", numbered(5_000, part=pa.array(["a"] * 5_000)), **options)
        delete_rows(path, [3, 4999], "inline")
        (file,) = path.glob("part=a/*.parquet")
        content, chunk = bytearray(file.read_bytes()), pq.read_metadata(file).row_group(0).column(0)
        content[chunk.data_page_offset + 100 : chunk.data_page_offset + 150] = b"\xff" * 50
        file.write_bytes(content)
        rows = rows_of(opened(path, template="{n}", input={"keep_columns": ["part"]}), 256)
        expected = [row for row in range(5_000) if row not in (3, 4999)]
        assert [row["row_id"].rpartition("#")[2] for row in rows] == [str(row) for row in expected]
        assert {(row["n"], row["part"]) for row in rows} == {(None, "a")}
        assert all("row group 0, rows 0 to 4999" in row["_rj_read_error"]["message"] for row in rows)

    def test_partition_values_have_their_columns_types(self, tmp_path: Path) -> None:
        import datetime

        day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
        parts = {
            "number": pa.array([1, None], pa.int32()),
            "day": pa.array([day, None], pa.date32()),
            "moment": pa.array([moment, None], pa.timestamp("us", "UTC")),
            "flag": pa.array([True, None], pa.bool_()),
        }
        path = self.written(tmp_path / "table", numbered(2, **parts), partition_by=list(parts))
        rows = {row["n"]: row for row in rows_of(opened(path, template="{n}"))}
        assert [rows[0][name] for name in parts] == [1, day, moment, True]
        assert [rows[1][name] for name in parts] == [None] * 4

    def test_columns_added_later_are_null_in_older_files(self, tmp_path: Path) -> None:
        path = self.written(tmp_path / "table", numbered(2))
        self.written(path, numbered(2, 2, late=pa.array(["x", "y"])), mode="append", schema_mode="merge")
        rows = {row["n"]: row["late"] for row in rows_of(opened(path, template="{n} {late}"))}
        assert rows == {0: None, 1: None, 2: "x", 3: "y"}

    def test_renamed_columns_are_read_under_their_new_names(self, tmp_path: Path) -> None:
        path = self.written(tmp_path / "table", numbered(3).rename_columns(["col-1", "col-2", "col-3"]))
        rename_columns(path, {"col-1": "n", "col-2": "text", "col-3": "image"})
        source = opened(path)
        assert source.image_columns == ("image",)
        assert [(row["n"], row["image"]) for row in rows_of(source)] == [(row, b"picture %d" % row) for row in range(3)]

    def test_fields_renamed_within_a_column_are_read_under_their_new_names(self, tmp_path: Path) -> None:
        held = pa.array([{"col-b": b"picture", "col-p": "a.png"}, None])
        lists = pa.array([[{"col-b": b"picture", "col-p": "a.png"}], []], pa.list_(held.type))
        path = self.written(tmp_path / "table", pa.table({"image": held, "images": lists}))
        rename_columns(path, {"image": "image", "images": "images", "col-b": "bytes", "col-p": "path"})
        rows = rows_of(opened(path, input={"image_columns": ["image", "images"]}))
        assert [row["image"] for row in rows] == [{"bytes": b"picture", "path": "a.png"}, None]
        assert [row["images"] for row in rows] == [[{"bytes": b"picture", "path": "a.png"}], []]

    def test_its_folder_is_never_read_as_loose_files(self, tmp_path: Path) -> None:
        path = self.written(tmp_path / "all" / "table", numbered(3))
        for given in ({"path": str(path), "format": "parquet"}, {"path": str(path.parent)}):
            with pytest.raises(InputError, match=r"table: this folder is a table of format delta"):
                opened(given.pop("path"), input=given)

    def test_a_file_that_is_gone_is_named(self, tmp_path: Path) -> None:
        path = self.written(tmp_path / "table", numbered(3))
        (file,) = path.glob("*.parquet")
        file.unlink()
        with pytest.raises(InputError, match=f"{file.name}: no such file"):
            opened(path)

    def test_on_s3(self, tmp_path: Path, s3: Any) -> None:
        path = self.written(tmp_path / "table", numbered(3))
        delete_rows(path, [1], "file", enable=True)
        for file in path.rglob("*"):
            if file.is_file():
                s3(f"delta/{file.relative_to(path)}", file.read_bytes())
        rows = rows_of(opened("s3://pictures/delta/", template="{n}"))
        assert [row["n"] for row in rows] == [0, 2]


class TestIceberg:
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Iterator[Any]:
        sql = pytest.importorskip("pyiceberg.catalog.sql")
        folder = tmp_path / "warehouse"
        folder.mkdir()
        catalog = sql.SqlCatalog("c", uri=f"sqlite:///{folder}/c.db", warehouse=f"file://{folder}")
        catalog.create_namespace("ns")
        yield catalog
        catalog.close()

    @staticmethod
    def folder(table: Any) -> Path:
        return Path(table.location().removeprefix("file://"))

    def test_a_table_is_read_at_its_newest_snapshot_or_the_one_asked_for(self, catalog: Any) -> None:
        table = catalog.create_table("ns.t", schema=numbered(0).schema)
        table.append(numbered(5))
        first = table.current_snapshot().snapshot_id
        table.append(numbered(5, 5))
        table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "both").commit()
        table.delete("n = 3")
        path = self.folder(table)
        assert sorted(numbers_of(path)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert numbers_of(path, version=first) == list(range(5))
        assert sorted(numbers_of(path, version="both")) == list(range(10))
        metadata = Path(table.metadata_location.removeprefix("file://"))
        assert sorted(numbers_of(metadata)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        source = opened(path, template="{n}")
        assert source.version == table.current_snapshot().snapshot_id
        for row in rows_of(source):
            name, position = row["row_id"].split("#")
            assert pq.read_table(path / name).column("n")[int(position)].as_py() == row["n"]
        with pytest.raises(InputError, match="no snapshot 'nightly'; it has main, both"):
            opened(path, input={"version": "nightly"})

    def test_files_of_positional_deletes_are_heeded(self, catalog: Any) -> None:
        """`pyiceberg` reads them and writes none: added to the table's manifests through its own writers."""
        table = catalog.create_table("ns.t", schema=numbered(0).schema, properties={"format-version": "2"})
        table.append(numbered(10))
        table.append(numbered(10, 10))
        delete_positions(table, [0, 4, 9])
        path = self.folder(table)
        theirs = sorted(table.refresh().scan().to_arrow().column("n").to_pylist())
        assert len(theirs) == 17
        source = opened(path, template="{n}")
        assert source.num_rows == 17
        assert sorted(row["n"] for row in rows_of(source)) == theirs
        assert opened(path, template="{n}", input={"version": table.snapshots()[1].snapshot_id}).num_rows == 20

    def test_equality_deletes_are_refused_with_what_to_do(self, catalog: Any) -> None:
        table = catalog.create_table("ns.t", schema=numbered(0).schema, properties={"format-version": "2"})
        table.append(numbered(10))
        delete_positions(table, [1], is_equality=True)
        with pytest.raises(InputError, match=r"equality deletes.*Compact the table"):
            opened(self.folder(table))

    def test_columns_renamed_added_and_partitioned_by(self, catalog: Any) -> None:
        from pyiceberg.transforms import IdentityTransform
        from pyiceberg.types import StringType

        table = catalog.create_table("ns.t", schema=numbered(0, part=pa.array([], pa.string())).schema)
        with table.update_spec() as update:
            update.add_field("part", IdentityTransform(), "part")
        table.append(numbered(4, part=pa.array(["a", "b", "a", None])))
        with table.update_schema() as change:
            change.rename_column("text", "words")
            change.add_column("late", StringType())
        rows = rows_of(opened(self.folder(table), template="{n} {words} {late} {part}"))
        found = sorted((row["n"], row["words"], row["late"], row["part"]) for row in rows[:])[:3]
        assert found == [(0, "text 0", None, "a"), (1, "text 1", None, "b"), (2, "text 2", None, "a")]
        assert len(rows) == 4

    def test_fields_renamed_dropped_and_added_within_a_column(self, catalog: Any) -> None:
        from pyiceberg.types import StringType

        image = pa.array([{"data": b"picture", "path": "a.png", "gone": "x"}, None])
        lists = pa.array([[{"data": b"picture"}], []])
        written = pa.table({"image": image, "images": lists})
        table = catalog.create_table("ns.t", schema=written.schema)
        table.append(written)
        with table.update_schema() as change:
            change.rename_column("image.data", "bytes")
            change.rename_column("images.element.data", "bytes")
            change.delete_column("image.gone")
        with table.update_schema() as change:
            change.add_column(("image", "gone"), StringType())
        rows = rows_of(opened(self.folder(table), input={"image_columns": ["image", "images"]}))
        assert [row["image"] for row in rows] == [{"bytes": b"picture", "path": "a.png", "gone": None}, None]
        assert [row["images"] for row in rows] == [[{"bytes": b"picture"}], []]

    def test_its_folder_is_never_read_as_loose_files(self, catalog: Any) -> None:
        table = catalog.create_table("ns.t", schema=numbered(0).schema)
        with pytest.raises(InputError, match="has no snapshot yet"):
            opened(self.folder(table))
        table.append(numbered(3))
        with pytest.raises(InputError, match="this folder is a table of format iceberg"):
            opened(self.folder(table), input={"format": "parquet"})

    def test_on_s3(self, s3: Any, moto_env: dict[str, str]) -> None:
        sql = pytest.importorskip("pyiceberg.catalog.sql")
        properties = {
            "s3.endpoint": moto_env["AWS_ENDPOINT_URL"],
            "s3.region": "us-east-1",
            "s3.access-key-id": "testing",
            "s3.secret-access-key": "testing",
        }
        catalog = sql.SqlCatalog("c", uri="sqlite:///:memory:", warehouse="s3://pictures/warehouse", **properties)
        catalog.create_namespace("ns")
        table = catalog.create_table("ns.t", schema=numbered(0).schema)
        table.append(numbered(4))
        table.delete("n = 1")
        rows = rows_of(opened(table.location(), template="{n}"))
        assert [row["n"] for row in rows] == [0, 2, 3]
        host = moto_env["AWS_ENDPOINT_URL"].removeprefix("http://").replace(":", "%3A")
        rows = rows_of(
            opened(f"{table.location()}?scheme=http&endpoint_override={host}&region=us-east-1", template="{n}")
        )
        assert [row["n"] for row in rows] == [0, 2, 3]
        catalog.close()

    def test_two_newest_metadata_files_are_asked_about(self, catalog: Any) -> None:
        table = catalog.create_table("ns.t", schema=numbered(0).schema)
        table.append(numbered(3))
        metadata = self.folder(table) / "metadata"
        newest = Path(table.metadata_location.removeprefix("file://"))
        shutil.copy(newest, metadata / f"{newest.name[:5]}-other.metadata.json")
        with pytest.raises(InputError, match="which metadata is the newest is not clear"):
            opened(self.folder(table))
        (metadata / "version-hint.text").write_text(newest.name)
        assert numbers_of(self.folder(table)) == [0, 1, 2]


class TestLance:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("lance")

    def test_a_data_set_is_read_at_its_newest_version_or_the_one_asked_for(self, tmp_path: Path) -> None:
        import lance

        path = tmp_path / "set.lance"
        data = lance.write_dataset(numbered(10), str(path), max_rows_per_file=4)
        data.tags.create("whole", data.version)
        data.delete("n = 3 or n = 8")
        lance.write_dataset(numbered(5, 10), str(path), mode="append")
        live = [row for row in range(15) if row not in (3, 8)]
        assert numbers_of(path) == live
        assert numbers_of(path, version="whole") == numbers_of(path, version=1) == list(range(10))
        source = opened(path, template="{n}")
        assert (source.version, source.image_columns) == (3, ("image",))
        addresses = [f"{row // 4}#{row % 4}" for row in range(10)] + [f"3#{row}" for row in range(5)]
        assert ids_of(source) == [address for row, address in enumerate(addresses) if row in live]
        with pytest.raises(InputError, match="version 9: cannot be opened"):
            opened(path, input={"version": 9})
        with pytest.raises(InputError, match="table of format lance"):
            opened(path, input={"format": "parquet"})

    def test_any_split_is_read_alone_and_a_version_stays_what_it_was(self, tmp_path: Path) -> None:
        import lance

        path = tmp_path / "set.lance"
        data = lance.write_dataset(numbered(10_000), str(path))
        data.delete("n = 4000 or n = 9999")
        source = pickle.loads(pickle.dumps(opened(path, template="{n}", input={"id_column": "n"})))
        assert [split.num_rows for split in source.splits] == [4096, 4096, 1806]
        lance.dataset(str(path)).delete("n < 5000")
        ids = [row for table in source.read(source.splits[1], 500) for row in table.column("row_id").to_pylist()]
        assert ids == list(range(4097, 8193))
        assert opened(path, template="{n}").num_rows == 4999
        assert input_identity(source) != input_identity(opened(path, template="{n}", input={"id_column": "n"}))

    def test_on_s3(self, tmp_path: Path, s3: Any) -> None:
        import lance

        path = tmp_path / "set.lance"
        lance.write_dataset(numbered(5), str(path)).delete("n = 2")
        for file in path.rglob("*"):
            if file.is_file():
                s3(f"set.lance/{file.relative_to(path)}", file.read_bytes())
        rows = rows_of(opened("s3://pictures/set.lance", template="{n}"))
        assert [row["n"] for row in rows] == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("module", "extra"), [("deltalake", "delta"), ("pyiceberg.table", "iceberg"), ("lance", "lance")]
)
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    signs = {"delta": "_delta_log/0.json", "iceberg": "metadata/v1.metadata.json", "lance": "_versions/1.manifest"}
    sign = tmp_path / signs[extra]
    sign.parent.mkdir()
    sign.write_text("{}")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=rf"is missing: pip install 'ray_job\[{extra}\]'"):
        opened(tmp_path)


@pytest.mark.parametrize("format_", ["delta", "lance"])
def test_a_bucket_is_reached_by_the_specs_own_options(
    tmp_path: Path, s3: Any, moto_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    path = written_as(format_, tmp_path)
    for file in path.rglob("*"):
        if file.is_file():
            s3(f"own-{format_}/{file.relative_to(path)}", file.read_bytes())
    for name in moto_env:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {"endpoint_url": moto_env["AWS_ENDPOINT_URL"], "region": "us-east-1"}
    options |= {"key": "testing", "secret": "testing"}
    given = {"storage_options": options, "format": format_}
    rows = rows_of(opened(f"s3://pictures/own-{format_}", template="{n}", input=given))
    assert [row["n"] for row in rows] == [0, 1, 2]


def written_as(format_: str, folder: Path) -> Path:
    """A table of three rows."""
    path = folder / "table"
    if format_ == "delta":
        pytest.importorskip("deltalake").write_deltalake(str(path), numbered(3))
    else:
        pytest.importorskip("lance").write_dataset(numbered(3), str(path))
    return path


def test_a_version_of_what_has_none_is_refused(tmp_path: Path) -> None:
    pq.write_table(numbered(1), tmp_path / "a.parquet")
    with pytest.raises(SpecError, match=r"input\.version: has no effect on parquet"):
        opened(tmp_path, input={"version": 1})
    with pytest.raises(SpecError, match=r"input\.split: has no effect on parquet"):
        opened(tmp_path, input={"split": "train"})


def delete_rows(path: Path, positions: Sequence[int], kind: str, *, enable: bool = False) -> None:
    """A commit that marks rows of the table's only file as deleted, as the Delta protocol has it."""
    log = path / "_delta_log"
    lines = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    (add,) = (line["add"] for line in lines if "add" in line)
    data = roaring(positions)
    if kind == "inline":
        vector = {"storageType": "i", "pathOrInlineDv": z85(data), "sizeInBytes": len(data)}
    else:
        (path / "vector.bin").write_bytes(struct.pack(">BI", 1, len(data)) + data + struct.pack(">I", zlib.crc32(data)))
        vector = {
            "storageType": "p",
            "pathOrInlineDv": f"file://{path}/vector.bin",
            "offset": 1,
            "sizeInBytes": len(data),
        }
    removed = {key: add[key] for key in ("path", "partitionValues", "size")}
    commit: list[dict[str, Any]] = [
        {"remove": {**removed, "deletionTimestamp": 1, "dataChange": True, "extendedFileMetadata": True}},
        {"add": {**add, "deletionVector": {**vector, "cardinality": len(positions)}}},
    ]
    if enable:
        features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
        commit.insert(0, {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}})
    (log / f"{1:020}.json").write_text("".join(json.dumps(action) + "\n" for action in commit))


def roaring(positions: Sequence[int]) -> bytes:
    """A 64-bit roaring bitmap as Delta stores it, of positions below 65,536."""
    head = struct.pack("<IIHHI", 12346, 1, 0, len(positions) - 1, 16)
    return struct.pack("<IQI", 1681511377, 1, 0) + head + struct.pack(f"<{len(positions)}H", *sorted(positions))


def z85(data: bytes) -> str:
    """Text of bytes, as ZeroMQ has it."""
    words = struct.iter_unpack(">I", data + b"\0" * (-len(data) % 4))
    return "".join(_Z85[word // 85**power % 85] for (word,) in words for power in (4, 3, 2, 1, 0))


def rename_columns(path: Path, names: dict[str, str]) -> None:
    """A commit that turns on column mapping by name, with other names than the files have."""
    log = path / "_delta_log"
    lines = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    (metadata,) = (line["metaData"] for line in lines if "metaData" in line)
    schema = json.loads(metadata["schemaString"])
    for number, field in enumerate(fields_of(schema), start=1):
        physical = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": field["name"]}
        field.update(name=names[field["name"]], metadata=physical)
    configuration = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "99"}
    metadata |= {"schemaString": json.dumps(schema), "configuration": configuration}
    features = {"readerFeatures": ["columnMapping"], "writerFeatures": ["columnMapping"]}
    commit = [{"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}, {"metaData": metadata}]
    (log / f"{1:020}.json").write_text("".join(json.dumps(action) + "\n" for action in commit))


def fields_of(type_: Any) -> list[dict[str, Any]]:
    """All fields of a Delta schema, those within others too."""
    if not isinstance(type_, dict):
        return []
    inner = fields_of(type_.get("elementType"))
    return inner + [each for field in type_.get("fields", []) for each in (field, *fields_of(field["type"]))]


def delete_positions(table: Any, positions: Sequence[int], *, is_equality: bool = False) -> None:
    """A snapshot that adds a file of deletes for the table's first data file."""
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.table.snapshots import Operation
    from pyiceberg.table.update.snapshot import _FastAppendFiles

    first = str(next(iter(table.scan().plan_files())).file.file_path)
    location = f"{table.location()}/data/deletes.parquet"
    rows = pa.table({"file_path": [first] * len(positions), "pos": pa.array(positions, pa.int64())})
    pq.write_table(rows, location.removeprefix("file://"))
    content = DataFileContent.EQUALITY_DELETES if is_equality else DataFileContent.POSITION_DELETES
    file = DataFile.from_args(
        content=content,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition={},
        record_count=len(positions),
        file_size_in_bytes=Path(location.removeprefix("file://")).stat().st_size,
    )
    file.spec_id = table.metadata.default_spec_id
    with table.transaction() as transaction:
        append = _FastAppendFiles(Operation.APPEND, transaction, table.io)
        append.append_data_file(file)
        transaction._apply(*append._commit())
