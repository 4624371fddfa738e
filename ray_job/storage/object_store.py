"""What libraries that have a storage layer of their own must be told to find a bucket where `places.py` finds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit

from ray_job.storage.options import named_options
from ray_job.storage.places import Location


def storage_options(uri: str, location: Location, named: Mapping[str, str] | None = None) -> dict[str, str]:
    """Options of Rust's `object_store`, which Delta and Lance use, beyond what it takes from the environment itself.

    Args:
        uri: as the user wrote it: its options (`?endpoint_override=…&region=…`) and credentials count.
        location: of it.
        named: options that a spec names (`options.py`), instead of the URI's own.
    """
    if location.scheme != "s3":
        return {}
    parts = urlsplit(uri)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()} | named_options(named or {})
    endpoint = query.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    options = {
        "aws_endpoint": endpoint,
        "aws_allow_http": "true" if endpoint.startswith("http://") else "",
        "aws_region": query.get("region", ""),
        "aws_access_key_id": query.get("access_key") or unquote(parts.username or ""),
        "aws_secret_access_key": query.get("secret_key") or unquote(parts.password or ""),
        "aws_session_token": query.get("session_token", ""),
        "aws_skip_signature": query.get("anonymous", ""),
        "aws_virtual_hosted_style_request": query.get("force_virtual_addressing", ""),
    }
    return {key: value for key, value in options.items() if value}
