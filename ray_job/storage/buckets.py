"""The filesystem of a bucket whose options a spec names."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from pyarrow import fs

from ray_job.errors import InputError
from ray_job.storage.azure import account_name, check_authority
from ray_job.storage.options import known_options


def bucket_filesystem(scheme: str, bucket: str, account: str, options: Mapping[str, str]) -> fs.FileSystem:
    """The storage of a bucket. In S3, without a region or an endpoint the bucket is asked where it is.

    Args:
        scheme: s3, gs or abfs.
        bucket: its name; an empty text for none yet.
        account: of Azure (`azure.py`), as the URI has it.
        options: of the spec.

    Raises:
        InputError: an option is not known, its value is none, or the options do not go together.
        OSError: the bucket does not say where it is.
    """
    known = known_options(scheme, options)
    try:
        return {"s3": _s3, "gs": _gcs, "abfs": _azure}[scheme](known, bucket, account)
    except ValueError as error:  # pyarrow's own words name the options, no values
        raise InputError(f"storage_options of {scheme}://: {error}") from None


def account_with_options(account: str, options: Mapping[str, str]) -> str:
    """The account of Azure's paths, given the one of the URI.

    Raises:
        InputError: neither names one, or they name two.
    """
    known = known_options("abfs", options)
    named, authority = known.get("account_name", ""), known.get("blob_storage_authority", "")
    name, _, host = account.partition("@")
    if named and name and named != name:
        raise InputError("storage_options.account_name: the URI names another account; leave one of them out")
    name = name or named
    if not name:
        raise InputError(
            "the URI names no account; set storage_options.account_name, or write "
            "abfs://container@account.dfs.core.windows.net/folder"
        )
    host = f"{name}{authority}" if authority.startswith(".") else authority or host
    return f"{name}@{host}" if host else name


def _s3(known: dict[str, Any], bucket: str, _: str) -> fs.FileSystem:
    if "region" not in known and "endpoint_override" not in known and bucket:
        known["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(**known)


def _gcs(known: dict[str, Any], _: str, __: str) -> fs.FileSystem:
    scheme, mark, host = known.get("endpoint_override", "").partition("://")
    if mark:  # as S3 takes it; Google's client wants the two apart
        known |= {"endpoint_override": host.rstrip("/"), "scheme": known.get("scheme", scheme)}
    return fs.GcsFileSystem(**known)


def _azure(known: dict[str, Any], _: str, account: str) -> fs.FileSystem:
    known["account_name"] = account_name(account)
    _, _, host = account.partition("@")
    if host and "blob_storage_authority" not in known:
        known |= {"blob_storage_authority": host, "dfs_storage_authority": host}
    if "blob_storage_scheme" in known:
        known.setdefault("dfs_storage_scheme", known["blob_storage_scheme"])
    for name in ("blob_storage_authority", "dfs_storage_authority"):
        check_authority(name, known.get(name))
    if "account_key" in known:
        try:
            b64decode(known["account_key"], validate=True)
        except ValueError:
            raise ValueError("account_key is not base64; copy the whole key") from None
    return fs.AzureFileSystem(**known)
