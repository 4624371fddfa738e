"""Azure's URIs, in which a container or an account stands before the @, not a user.

`abfs://container@account.dfs.core.windows.net/path`, `abfs://account.blob.core.windows.net/container/path`,
`abfs://account@container/path` and `abfs://account@host:port/container/path` are read, as pyarrow does.
"""

from __future__ import annotations

import re

SCHEMES = ("abfs", "abfss")
_AUTHORITY = re.compile(r"[\w.-]+(:\d{1,5})?", re.ASCII)
_DFS, _BLOB = ".dfs.core.windows.net", ".blob.core.windows.net"


def parse_azure(authority: str, path: str) -> tuple[str, str]:
    """Account and path of a URI, given its parts before and from its first slash. The path is `container/key`.

    The account is a name, or `name@host` where it is not Azure's own host.
    """
    user, _, host = authority.rpartition("@")
    user = user.partition(":")[0]
    if host.endswith(_DFS):
        return host.removesuffix(_DFS), f"{user}{path}"
    if host.endswith(_BLOB):
        return host.removesuffix(_BLOB), path.lstrip("/")
    if "." in host or ":" in host:
        return f"{user}@{host}", path.lstrip("/")
    return user, f"{host}{path}"


def azure_uri(account: str, path: str) -> str:
    """The URI of a path, without credentials."""
    if "@" in account:
        return f"abfs://{account}/{path}"
    container, _, key = path.partition("/")
    return f"abfs://{container}@{account}{_DFS}/{key}".rstrip("/")


def account_name(account: str) -> str:
    """An account without its host."""
    return account.partition("@")[0]


def check_authority(name: str, value: str | None) -> None:
    """Refuses what is no host: Azure's client would end the process.

    Raises:
        ValueError: it is not `host`, `host:port` or `.suffix` of a host.
    """
    if value is not None and not _AUTHORITY.fullmatch(value):
        raise ValueError(f"{name} must be a host, as 127.0.0.1:10000 or .blob.core.windows.net, without http://")
