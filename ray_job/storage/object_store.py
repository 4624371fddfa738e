"""What libraries that have a storage layer of their own must be told to find a bucket where `places.py` finds it."""

from __future__ import annotations

import os
from urllib.parse import parse_qs, unquote, urlsplit

from ray_job.storage.places import Location


def storage_options(uri: str, location: Location) -> dict[str, str]:
    """Options of Rust's `object_store`, which Delta and Lance use, beyond what it takes from the environment itself.

    Args:
        uri: as the user wrote it: its options (`?endpoint_override=…&region=…`) and credentials count.
        location: of it.
    """
    if location.scheme != "s3":
        return {}
    parts = urlsplit(uri)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    endpoint = query.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    options = {
        "aws_endpoint": endpoint,
        "aws_allow_http": "true" if endpoint.startswith("http://") else "",
        "aws_region": query.get("region", ""),
        "aws_access_key_id": unquote(parts.username or ""),
        "aws_secret_access_key": unquote(parts.password or ""),
    }
    return {key: value for key, value in options.items() if value}
