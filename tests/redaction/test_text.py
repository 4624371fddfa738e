"""No secret in any text that goes out, and nothing but secrets taken away."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_job.errors import ErrorCode, InputError, ModelError, RayJobError, RowError, SpecError, first_line
from ray_job.output.manifest import public_spec
from ray_job.redaction.logs import logger_of
from ray_job.redaction.text import public_uri, without_secrets
from ray_job.spec import JobSpec
from ray_job.storage.places import locate, parse_uri

SECRET = "tOpSeCrEt"
SCHEMES = ("s3", "s3a", "gs", "https", "http", "ftp", "hdfs", "hf", "abfs", "abfss", "S3")
USERS = (
    f"KEY:{SECRET}@", f"{SECRET}@", f":{SECRET}@", f"KEY:a/{SECRET}/b+c=@", f"KEY:123/{SECRET}@", f"a@b:{SECRET}@",
    f"KEY:a@{SECRET}@", f"KEY:%2F{SECRET}%40@", f"%6B:{SECRET}@", f"KEY:?{SECRET}@", f"KEY:#{SECRET}@",
    f"KEY:'{SECRET}@", f'KEY:"{SECRET}@',
)  # fmt: skip
TAILS = (
    f"?{SECRET}", f"?token={SECRET}", f"?a=b&X-Amz-Signature={SECRET}", f"?sv=2024&sig={SECRET}%3D", f"#{SECRET}",
    f"?a#{SECRET}", f"?a?{SECRET}", f"?a=b@{SECRET}", f"?'{SECRET}'"[:-1],
)  # fmt: skip
HOSTS = ("bucket", "host.example.org", "host.example.org:8443", "[::1]:9000", "account.dfs.core.windows.net")
PATHS = ("", "/", "/a/b.parquet", "/it's.parquet", "/a%20b/**/[!x]*.png", "/a@b/c", "/a:b/c", "/x=y/z")
CONTEXTS = (
    "{}", "cannot read {}: no such file", "'{}'", '"{}"', "({})", "[{}, {}]", "at <{}>.", "`{}`,", "path={};",
    '{{"a": "{}", "b": 1}}', 'Traceback:\n  File "x.py", line 1\nOSError: {}\n', r"{{\"a\": \"{}\"}}", "{}\t{}",
)  # fmt: skip


def secret_uris(schemes: tuple[str, ...] = SCHEMES) -> st.SearchStrategy[str]:
    def joined(parts: tuple[str, str, str, str, str]) -> str:
        scheme, user, host, path, tail = parts
        if scheme in ("https", "http", "ftp", "hdfs", "hf"):  # where hosts have ports, host:123/… is one
            user = user.replace("123", "x")
        return f"{scheme}://{user}{host}{path}{tail}"

    drawn = st.tuples(
        st.sampled_from(schemes),
        st.sampled_from(("", *USERS)),
        st.sampled_from(HOSTS),
        st.sampled_from(PATHS),
        st.sampled_from(("", *TAILS)),
    )
    # Of Azure a bare name before the @ is a container.
    return drawn.filter(
        lambda parts: (
            SECRET in parts[1] + parts[4] and not (parts[0].startswith("abfs") and parts[1].startswith((SECRET, "a@b")))
        )
    ).map(joined)


def shown_everywhere(text: str) -> str:
    """What a message turns into on each of its ways out."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    logger = logger_of("ray_job.tests.redaction")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        try:
            raise OSError(text)
        except OSError:
            logger.warning("failed: %s", text, exc_info=True)
    finally:
        logger.removeHandler(handler)
    errors = [RayJobError(text), ModelError(f"model.path: {text}"), SpecError([text]), InputError(text)]
    errors += [pickle.loads(pickle.dumps(error)) for error in errors]
    row = RowError(ErrorCode.STORAGE, text)
    shown = [*records, *map(str, errors), *map(repr, errors), *errors[2].problems, row.message, str(row)]  # type: ignore[attr-defined]
    return "\n".join([*shown, first_line(OSError(text)), without_secrets(text)])


@given(uri=secret_uris(), context=st.sampled_from(CONTEXTS))
@example(uri=f"s3://KEY:12/{SECRET}@bucket/x", context="{}")
def test_no_secret_of_a_uri_is_shown(uri: str, context: str) -> None:
    text = context.replace("{}", uri).replace("{{", "{").replace("}}", "}")
    assert SECRET not in shown_everywhere(text)
    assert SECRET not in public_uri(uri)


@settings(deadline=None)
@given(uri=secret_uris(("s3", "gs", "https", "abfs")))
def test_no_secret_of_a_spec_reaches_its_manifest(uri: str) -> None:
    model = {"path": uri, "adapter": uri}
    sections = {"input": {"path": uri, "image_root": uri}, "output": {"path": uri}, "model": model}
    spec = JobSpec.from_dict(sections)
    assert SECRET not in json.dumps(public_spec(spec))
    assert SECRET not in repr(spec) + str(spec)
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"input": {"path": "x", "limit": uri}, "output": {"path": "x"}})
    assert SECRET not in str(caught.value)


@given(
    scheme=st.sampled_from(SCHEMES),
    host=st.sampled_from(HOSTS),
    path=st.sampled_from(PATHS),
    context=st.sampled_from(CONTEXTS),
)
def test_a_uri_without_secrets_stays(scheme: str, host: str, path: str, context: str) -> None:
    uri = f"{scheme}://{host}{path}"
    text = context.replace("{}", uri).replace("{{", "{").replace("}}", "}")
    if (
        scheme.lower() not in ("s3", "s3a", "gs", "abfs", "abfss") or ":" not in host or "@" not in path
    ):  # else it may be a key
        assert public_uri(uri) == uri
        assert without_secrets(text) == text
    azure = f"abfs://photos@account.dfs.core.windows.net{path}"
    assert public_uri(azure) == without_secrets(azure) == azure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DefaultEndpointsProtocol=https;AccountKey=tOp/SeCrEt==;EndpointSuffix=x", None),
        ("secret_key=tOpSeCrEt, region=eu", "secret_key=…, region=eu"),
        ('{"token": "tOpSeCrEt", "n": 1}', '{"token": "…", "n": 1}'),
        ("{'password': 'tOpSeCrEt'}", "{'password': '…'}"),
        ("Authorization: Bearer tOpSeCrEt.abc", "Authorization: Bearer …"),
        ("hf_tOpSeCrEttOpSeCrEt is no token", "… is no token"),
        ("sv=2024-01-01&sig=tOpSeCrEt%3D", "sv=2024-01-01&sig=…"),
        ("abfs://photos:tOp/SeCrEt==@acc.dfs.core.windows.net/in", "abfs://photos@acc.dfs.core.windows.net/in"),
        ("max_tokens=5 and RAY_AUTH_MODE=token, or a", "max_tokens=5 and RAY_AUTH_MODE=token, or a"),
        ("wants a token: set it", "wants a token: set it"),
        ("a.parquet#7: what? #1 at x@y", "a.parquet#7: what? #1 at x@y"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("s3://a/b is not in s3://c, see http://d:1?x", "s3://a/b is not in s3://c, see http://d:1"),
    ],
)  # fmt: skip
def test_other_secrets_go_and_the_rest_stays(text: str, expected: str | None) -> None:
    assert "SeCrEt" not in without_secrets(text)
    if expected is not None:
        assert without_secrets(text) == expected


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://bucket/x?{SECRET}",
        f"s3://bucket/x?region=us-east-1&{SECRET}=x",
        f"s3://bucket/x?region=us-east-1&scheme={SECRET}",
        f"s3://KEY:{SECRET}@bu cket%/x?nonsense=1",
        f"nosuch://a:{SECRET}@host/x?k={SECRET}",
        f"gs://bucket/x?{SECRET}=1",
        f"abfs://photos:{SECRET}@/x",
        f"abfs://photos@acc.dfs.core.windows.net/x?sv=1&sig={SECRET}&{SECRET}",
    ],
)
def test_no_secret_that_a_library_quotes_is_shown(uri: str) -> None:
    try:
        shown = repr(locate(uri))
    except InputError as error:
        shown = str(error)
    assert SECRET not in shown


def test_azures_containers_and_accounts_are_addresses() -> None:
    for uri, path, shown in (
        ("abfs://photos@acc.dfs.core.windows.net/in/x", "photos/in/x", "abfs://photos@acc.dfs.core.windows.net/in/x"),
        ("abfss://photos:tOp%2FSeCrEt@acc.dfs.core.windows.net/in", "photos/in", "abfs://photos@acc.dfs.core.windows.net/in"),
        ("abfs://acc.blob.core.windows.net/photos/in", "photos/in", "abfs://photos@acc.dfs.core.windows.net/in"),
        ("abfs://acc@photos/in", "photos/in", "abfs://photos@acc.dfs.core.windows.net/in"),
        ("abfs://acc@host.example:10000/photos/in", "photos/in", "abfs://acc@host.example:10000/photos/in"),
    ):  # fmt: skip
        location = locate(uri)
        assert (location.path, str(location)) == (path, shown)
        assert parse_uri(uri) == parse_uri(location.reference) == ("abfs", path)
        assert "SeCrEt" not in repr(location)


def test_every_logger_of_the_package_is_redacted() -> None:
    from tests.test_layers import FILES

    bare = [file for file in FILES if "logging.getLogger(__name__)" in file.read_text() and "training" not in str(file)]
    assert bare == []


def test_what_is_logged_can_be_written_as_utf_8(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("half \ud800 of a pair")
    except ValueError as error:
        logger_of("ray_job.of_a_test").error("row \udfff", exc_info=error)
    assert b"row \\udfff" in caplog.text.encode()
    assert b"half \\ud800 of a pair" in caplog.text.encode()
