"""Options of a bucket that a spec names: credentials, region, endpoint. What is not named comes from the environment.

Names are pyarrow's; those of the environment (AWS_ACCESS_KEY_ID) and of other libraries (endpoint_url, key) mean the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyarrow import fs

from ray_job.errors import InputError
from ray_job.redaction.text import HIDDEN, public_uri

_TEXTS = ("access_key", "secret_key", "session_token", "region", "endpoint_override", "scheme", "role_arn")
_SWITCHES = ("anonymous", "force_virtual_addressing")
_PUBLIC = ("region", "endpoint_override", "scheme", "role_arn", *_SWITCHES)
_OTHER_NAMES = {
    "access_key_id": "access_key",
    "key": "access_key",
    "secret_access_key": "secret_key",
    "secret": "secret_key",
    "token": "session_token",
    "default_region": "region",
    "region_name": "region",
    "endpoint_url": "endpoint_override",
    "endpoint_url_s3": "endpoint_override",
    "endpoint": "endpoint_override",
    "anon": "anonymous",
    "skip_signature": "anonymous",
    "no_sign_request": "anonymous",
    "virtual_hosted_style_request": "force_virtual_addressing",
}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def s3_filesystem(options: Mapping[str, str], bucket: str) -> fs.S3FileSystem:
    """The storage of a bucket. Without a region or an endpoint the bucket is asked where it is.

    Raises:
        InputError: an option is not known, or its value is none.
        OSError: the bucket does not say where it is.
    """
    known: dict[str, Any] = {}
    for name, value in options.items():
        option = _name(name)
        if value == HIDDEN:  # a manifest's: the environment must tell
            continue
        if option in _SWITCHES:
            if value.lower() not in _TRUTH:
                raise InputError(f"storage_options.{name}: must be true or false")
            known[option] = _TRUTH[value.lower()]
        elif option in _TEXTS:
            known[option] = value
        else:
            names = ", ".join((*_TEXTS, *_SWITCHES))
            raise InputError(f"storage_options.{name}: no such option of s3://; known: {names}")
    if "region" not in known and "endpoint_override" not in known and bucket:
        known["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(**known)


def public_options(options: Mapping[str, str] | None) -> dict[str, str] | None:
    """The options with what is secret, or may be, hidden."""
    if options is None:
        return None
    return {name: public_uri(value) if _name(name) in _PUBLIC else HIDDEN for name, value in options.items()}


def named_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options under the names that pyarrow has for them; what a manifest hides is left out."""
    return {_name(name): value for name, value in options.items() if value != HIDDEN}


def _name(name: str) -> str:
    name = name.lower().removeprefix("aws_").removeprefix("s3_")
    return _OTHER_NAMES.get(name, name)
