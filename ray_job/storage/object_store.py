"""What libraries that have a storage layer of their own must be told to find a bucket where `places.py` finds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote, urlsplit

from ray_job.errors import InputError
from ray_job.storage.options import named_options
from ray_job.storage.places import Location

_AZURE = ("account_key", "sas_token", "tenant_id", "client_id", "client_secret")


def library_uri(location: Location) -> str:
    """The URI by which Rust's `object_store` knows a place; an Azure account is one of its options."""
    return f"az://{quote(location.path)}" if location.scheme == "abfs" else location.reference


def storage_options(uri: str, location: Location, named: Mapping[str, str] | None = None) -> dict[str, str]:
    """Options of `object_store`, which Delta and Lance use, beyond what it takes from the environment itself.

    Args:
        uri: as the user wrote it: its options (`?endpoint_override=…&region=…`) and credentials count.
        location: of it.
        named: options that a spec names (`options.py`), instead of the URI's own.

    Raises:
        InputError: it takes no such option.
    """
    options = {"s3": _s3, "gs": _gcs, "abfs": _azure}.get(location.scheme)
    if options is None:
        return {}
    known = named_options(location.scheme, named or {})
    return {key: value for key, value in options(uri, location, known).items() if value}


def _s3(uri: str, _: Location, named: Mapping[str, str]) -> dict[str, str]:
    parts = urlsplit(uri)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()} | dict(named)
    endpoint = query.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    return {
        "aws_endpoint": endpoint,
        "aws_allow_http": "true" if endpoint.startswith("http://") else "",
        "aws_region": query.get("region", ""),
        "aws_access_key_id": query.get("access_key") or unquote(parts.username or ""),
        "aws_secret_access_key": query.get("secret_key") or unquote(parts.password or ""),
        "aws_session_token": query.get("session_token", ""),
        "aws_skip_signature": query.get("anonymous", ""),
        "aws_virtual_hosted_style_request": query.get("force_virtual_addressing", ""),
    }


def _gcs(_: str, location: Location, named: Mapping[str, str]) -> dict[str, str]:
    if set(named) - {"anonymous"}:
        raise InputError(
            f"{location}: of storage_options a table on gs:// takes `anonymous` alone; leave the others out, and name "
            "a file of credentials in GOOGLE_APPLICATION_CREDENTIALS"
        )
    return {"google_skip_signature": named.get("anonymous", "")}


def _azure(_: str, location: Location, named: Mapping[str, str]) -> dict[str, str]:
    name, _, host = location.account.partition("@")
    scheme = named.get("blob_storage_scheme", "https")
    path = "" if host.startswith(f"{name}.") else f"/{name}"  # where the host is not the account's, as pyarrow has it
    return {
        "azure_storage_account_name": name,
        "azure_storage_endpoint": f"{scheme}://{host}{path}" if host else "",
        "allow_http": "true" if scheme == "http" else "",
        **{f"azure_storage_{option}": named.get(option, "") for option in _AZURE},
    }
