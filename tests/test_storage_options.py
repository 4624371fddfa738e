"""Options of buckets: they reach the storage by any of their names, and secrets show nowhere."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pyarrow import fs

from ray_job import JobSpec
from ray_job.errors import InputError, SpecError
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import iter_tables
from ray_job.output.manifest import public_spec
from ray_job.output.run import Run
from ray_job.stages.open_job import open_job
from ray_job.storage.object_store import library_uri, storage_options
from ray_job.storage.options import public_options
from ray_job.storage.places import Location, account_of, is_same_storage, locate, parse_uri

SECRET = "wJalrXUtnFEMI"
KEY = "c2VjcmV0IGtleSBvZiBhbiBhY2NvdW50"


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


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("hdfs://host/x", {"access_key": SECRET}, "storage_options are for s3://, gs://, abfs://"),
        ("here/x", {"access_key": SECRET}, "storage_options are for s3://, gs://, abfs://"),
        (f"s3://AKIA:{SECRET}@bucket/x", {"region": "us-east-1"}, "s3://bucket/x: has options of its own"),
        ("gs://b/x?scheme=http", {"anonymous": "true"}, "gs://b/x: has options of its own"),
        (f"abfs://a:{SECRET}@h.net/c/x", {"account_name": "a"}, "has options of its own"),
        (
            "gs://b/x",
            {"access_key": SECRET},
            "storage_options.access_key: no such option of gs://; known: access_token",
        ),
        ("gs://b/x", {"token": SECRET}, "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://b/x", {"access_token": SECRET}, "credential_token_expiration must be specified together"),
        ("gs://b/x", {"access_token": SECRET, "credential_token_expiration": SECRET}, "expiration: must be a time"),
        ("gs://b/x", {"retry_time_limit": SECRET}, "retry_time_limit: must be a number of seconds"),
        ("gs://b/x", {"scheme": SECRET}, "scheme: must be http or https"),
        (
            "abfs://c@a.dfs.core.windows.net/x",
            {"connection_string": SECRET},
            "connection_string: no such option of abfs",
        ),
        ("abfs://c@a.dfs.core.windows.net/x", {"account_name": "b"}, "the URI names another account"),
        ("abfs://c/x", {"account_key": SECRET}, "the URI names no account; set storage_options.account_name"),
        ("abfs://c/x", {"account_name": "a", "account_key": SECRET}, "account_key is not base64"),
        ("abfs://c/x", {"account_name": "a", "account_key": "QUJD", "sas_token": SECRET}, "both account_key and sas"),
        ("abfs://c/x", {"account_name": "a", "client_secret": SECRET}, "client_id"),
        ("abfs://c/x", {"account_name": "a", "blob_storage_authority": f"http://{SECRET}:1"}, "must be a host"),
        ("abfs://c/x", {"account_name": "a", "dfs_storage_authority": f"{SECRET}:port"}, "must be a host"),
    ],
)
def test_options_that_do_not_fit_are_refused(uri: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        locate(uri, options)
    assert SECRET not in str(caught.value)


def test_options_of_google() -> None:
    options = {
        "GOOGLE_CLOUD_PROJECT": "p",
        "endpoint_url": "http://127.0.0.1:1/",
        "anon": "yes",
        "retry_time_limit": "9",
    }
    known = fs.GcsFileSystem(
        anonymous=True,
        project_id="p",
        endpoint_override="127.0.0.1:1",
        scheme="http",
        retry_time_limit=timedelta(seconds=9),
    )
    assert locate("gs://bucket/a b", options) == Location(known, "bucket/a b", "gs")
    time = datetime(2030, 1, 2, tzinfo=UTC)
    timed = {"access_token": SECRET, "credential_token_expiration": time}
    spec = JobSpec.from_dict({"input": {"path": "gs://b", "storage_options": timed}, "output": {"path": "o"}})
    assert spec.input.storage_options is not None
    place = locate("gs://b", spec.input.storage_options)
    assert place.filesystem == fs.GcsFileSystem(access_token=SECRET, credential_token_expiration=time)
    hidden = public_spec(spec)["input"]["storage_options"]
    assert hidden == {"access_token": "…", "credential_token_expiration": "…"}
    assert locate("gs://b", hidden).filesystem == fs.GcsFileSystem()  # as a page opens the input of a manifest


def test_options_of_azure() -> None:
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "acme", "azure_storage_account_key": KEY}
    known = fs.AzureFileSystem("acme", account_key=KEY)
    place = Location(known, "rows/a", "abfs", "acme")
    assert locate("abfss://rows/a", account) == place
    assert locate("abfs://rows@acme.dfs.core.windows.net/a", {"account_key": KEY}) == place
    assert is_same_storage("abfs", account_of("abfs://rows/p.jpg"), place)
    assert not is_same_storage("abfs", account_of("abfs://rows@other.dfs.core.windows.net/p.jpg"), place)
    local = {"blob_storage_authority": "127.0.0.1:1", "dfs_storage_authority": "127.0.0.1:1"}
    schemes = {"blob_storage_scheme": "http", "dfs_storage_scheme": "http"}
    here = Location(
        fs.AzureFileSystem("acme", account_key=KEY, **local, **schemes), "rows/a", "abfs", "acme@127.0.0.1:1"
    )
    assert locate("abfs://rows/a", {**account, **local, **schemes}) == here
    assert locate("abfs://acme@127.0.0.1:1/rows/a", {"account_key": KEY, "blob_storage_scheme": "http"}) == here
    china = locate("abfs://rows/a", {**account, "blob_storage_authority": ".blob.core.chinacloudapi.cn"})
    assert str(china) == "abfs://acme@acme.blob.core.chinacloudapi.cn/rows/a"
    assert parse_uri(china.reference) == ("abfs", "rows/a")
    assert account_of(china.reference) == china.account
    assert public_options({**account, **local, "sas_token": SECRET, "client_id": SECRET}) == {
        "AZURE_STORAGE_ACCOUNT_NAME": "acme", "azure_storage_account_key": "…", **local,
        "sas_token": "…", "client_id": "…",
    }  # fmt: skip
    for shown in (repr(here), repr(place), pickle.loads(pickle.dumps(place)).reference):
        assert KEY not in shown


def test_options_for_libraries_with_storage_of_their_own() -> None:
    named = {"account_key": KEY, "blob_storage_scheme": "http"}
    place = locate("abfs://acme@127.0.0.1:1/rows/a b", named)
    assert library_uri(place) == "az://rows/a%20b"
    assert storage_options("abfs://acme@127.0.0.1:1/rows/a b", place, named) == {
        "azure_storage_account_name": "acme",
        "azure_storage_account_key": KEY,
        "azure_storage_endpoint": "http://127.0.0.1:1/acme",
        "allow_http": "true",
    }
    china = locate("abfs://r/a", {"account_name": "acme", "blob_storage_authority": ".blob.core.chinacloudapi.cn"})
    assert storage_options("abfs://r/a", china)["azure_storage_endpoint"] == "https://acme.blob.core.chinacloudapi.cn"
    google = locate("gs://bucket/a", {"anonymous": "true"})
    assert storage_options("gs://bucket/a", google, {"anonymous": "true"}) == {"google_skip_signature": "true"}
    with pytest.raises(InputError, match="takes `anonymous` alone"):
        storage_options("gs://bucket/a", google, {"project_id": "p"})


def test_the_environment_leads_to_a_bucket(s3_store: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    s3_store.create_dir("regional")
    assert _store(locate("s3://regional/x")).region == "eu-central-1"


def test_an_output_is_written_where_its_options_lead(bucket: str, s3_store: fs.S3FileSystem) -> None:
    options = {"access_key": "AKIA", "secret_key": SECRET, "region": "us-east-1", "endpoint_override": bucket}
    output = {"path": "s3://optional/out", "storage_options": options}
    spec, source, _ = open_job(_spec(options, output=output, model={"path": "builtin:noop"}))
    with Run.open(spec, source) as run:
        run.begin("float32")
    with s3_store.open_input_stream("optional/out/_manifest.json") as stream:
        text = stream.read().decode()
    assert SECRET not in text
    assert json.loads(text)["spec"]["output"]["storage_options"]["region"] == "us-east-1"
