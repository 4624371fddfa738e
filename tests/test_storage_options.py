"""Options of buckets: they reach the storage by any of their names, and secrets show nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyarrow import fs

from ray_job import JobSpec
from ray_job.errors import InputError, SpecError
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import iter_tables
from ray_job.output.manifest import public_spec
from ray_job.storage.places import Location, locate

SECRET = "wJalrXUtnFEMI"


def _store(location: Location) -> fs.S3FileSystem:
    return location.filesystem


@pytest.fixture
def bucket(s3_store: fs.S3FileSystem, moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that the environment does not lead to; the server's address."""
    s3_store.create_dir("optional")
    with s3_store.open_output_stream("optional/in/a.jsonl") as stream:
        stream.write(b'{"prompt": "x"}\n')
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    return moto


def _spec(options: Any, **sections: Any) -> JobSpec:
    data = {"path": "s3://optional/in", "storage_options": options}
    return JobSpec.from_dict({"input": data, "output": {"path": "s3://optional/out"}, **sections})


@pytest.mark.parametrize(
    "names",
    [
        ("access_key", "secret_key", "region", "endpoint_override"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
        ("key", "secret", "region_name", "endpoint_url"),
    ],
)
def test_options_lead_to_the_bucket(bucket: str, names: tuple[str, ...]) -> None:
    options = dict(zip(names, ("AKIA", SECRET, "eu-west-1", bucket), strict=True))
    source = open_source(_spec(options))
    assert [table.num_rows for table in iter_tables(source)] == [1]
    assert source.image_root is not None
    assert _store(source.image_root).region == "eu-west-1"


def test_secrets_show_nowhere(bucket: str) -> None:
    options = {"access_key": "AKIA", "secret_key": SECRET, "endpoint_override": bucket, "anonymous": False}
    spec = _spec(options, output={"path": "s3://optional/out", "storage_options": options})
    shown = public_spec(spec)
    for section in ("input", "output"):
        assert shown[section]["storage_options"] == {
            "access_key": "…", "secret_key": "…", "endpoint_override": bucket, "anonymous": "false",
        }  # fmt: skip
    place = locate("s3://b/c", spec.input.storage_options)
    assert SECRET not in json.dumps(shown) + repr(spec) + repr(open_source(spec)) + repr(place)
    again = JobSpec.from_dict(shown)  # as a page opens the input of a manifest
    assert again.input.storage_options == shown["input"]["storage_options"]
    assert _store(locate("s3://b/c", again.input.storage_options)) == _store(
        locate("s3://b/c", {"endpoint": bucket, "anon": "no"})
    )
    for wrong in ({"secret_key": {"a": SECRET}}, [SECRET], {"secrets_key": SECRET}, {"anonymous": SECRET}):
        with pytest.raises((SpecError, InputError)) as caught:
            open_source(_spec(wrong))
        assert SECRET not in str(caught.value)
        assert "storage_options" in str(caught.value)


def test_options_of_another_storage_are_refused() -> None:
    with pytest.raises(InputError, match="storage_options are for s3:// only"):
        locate("gs://bucket/x", {"access_key": SECRET})
    with pytest.raises(InputError, match="s3://bucket/x: has options of its own") as caught:
        locate(f"s3://AKIA:{SECRET}@bucket/x", {"region": "us-east-1"})
    assert SECRET not in str(caught.value)


def test_the_environment_leads_to_a_bucket(s3_store: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    s3_store.create_dir("regional")
    assert _store(locate("s3://regional/x")).region == "eu-central-1"
