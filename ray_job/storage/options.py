"""Options of buckets that a spec names: credentials, region, endpoint. What is not named comes from the environment.

Names are pyarrow's; those of the environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY) and of other libraries
(endpoint_url, key, anon) mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_job.errors import InputError
from ray_job.redaction.text import HIDDEN, public_uri

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class _Storage:
    """What one kind of storage takes."""

    public: tuple[str, ...]  # options that may be shown
    secret: tuple[str, ...]  # and those that may not, or are nothing without these
    prefixes: tuple[str, ...]  # of the same names in the environment and elsewhere
    environment: str  # where credentials come from that are not named
    other_names: dict[str, str] = field(default_factory=dict)

    def name(self, name: str) -> str:
        """What pyarrow calls an option."""
        name = name.lower()
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return self.other_names.get(name, name)


_ENDPOINTS = {"endpoint_url": "endpoint_override", "endpoint": "endpoint_override"}
_ANONYMOUS = {"anon": "anonymous", "skip_signature": "anonymous"}
_STORAGES = {
    "s3": _Storage(
        public=("region", "endpoint_override", "scheme", "role_arn", "anonymous", "force_virtual_addressing"),
        secret=("access_key", "secret_key", "session_token"),
        prefixes=("aws_", "s3_"),
        environment="AWS_ACCESS_KEY_ID and the others of AWS",
        other_names={
            **_ENDPOINTS,
            **_ANONYMOUS,
            "endpoint_url_s3": "endpoint_override",
            "access_key_id": "access_key",
            "key": "access_key",
            "secret_access_key": "secret_key",
            "secret": "secret_key",
            "token": "session_token",
            "default_region": "region",
            "region_name": "region",
            "no_sign_request": "anonymous",
            "virtual_hosted_style_request": "force_virtual_addressing",
        },
    ),
    "gs": _Storage(
        public=("endpoint_override", "scheme", "project_id", "target_service_account", "anonymous", "retry_time_limit"),
        secret=("access_token", "credential_token_expiration"),
        prefixes=("google_cloud_", "google_", "gcs_"),
        environment="GOOGLE_APPLICATION_CREDENTIALS, the path of a file of credentials",
        other_names={**_ENDPOINTS, **_ANONYMOUS, "project": "project_id"},
    ),
    "abfs": _Storage(
        public=(
            "account_name",
            "blob_storage_authority",
            "blob_storage_scheme",
            "dfs_storage_authority",
            "dfs_storage_scheme",
        ),
        secret=("account_key", "sas_token", "tenant_id", "client_id", "client_secret"),
        prefixes=("azure_", "storage_"),
        environment="AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
    ),
}
SCHEMES = tuple(_STORAGES)


def known_options(scheme: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The options under pyarrow's names, with values of its types; what a manifest hides is left out.

    Raises:
        InputError: an option is not known, or its value is none. No value is shown: a secret may stand anywhere.
    """
    storage = _STORAGES[scheme]
    known: dict[str, Any] = {}
    for name, value in options.items():
        option = storage.name(name)
        if option not in (*storage.public, *storage.secret):
            names = ", ".join((*storage.secret, *storage.public))
            raise InputError(
                f"storage_options.{name}: no such option of {scheme}://; known: {names}. The environment may hold "
                f"{storage.environment}"
            )
        if value != HIDDEN:
            known[option] = _value(name, option, value)
    return known


def named_options(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options under pyarrow's names, as written; what a manifest hides is left out."""
    return {_STORAGES[scheme].name(name): value for name, value in options.items() if value != HIDDEN}


def public_options(options: Mapping[str, str] | None) -> dict[str, str] | None:
    """The options with what is secret, or may be, hidden."""
    if options is None:
        return None
    return {name: public_uri(value) if _is_public(name) else HIDDEN for name, value in options.items()}


def _is_public(name: str) -> bool:
    return any(storage.name(name) in storage.public for storage in _STORAGES.values())


def _value(name: str, option: str, value: str) -> Any:
    if option in ("anonymous", "force_virtual_addressing"):
        if value.lower() not in _TRUTH:
            raise InputError(f"storage_options.{name}: must be true or false")
        return _TRUTH[value.lower()]
    if option.endswith("scheme") and value not in _WEB:
        raise InputError(f"storage_options.{name}: must be http or https")
    try:
        if option == "retry_time_limit":
            return timedelta(seconds=float(value))
        if option == "credential_token_expiration":
            time = datetime.fromisoformat(value)
            return time if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        wanted = "a number of seconds" if option == "retry_time_limit" else "a time such as 2026-01-31T12:00:00Z"
        raise InputError(f"storage_options.{name}: must be {wanted}") from None
    return value
