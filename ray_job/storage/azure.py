"""Azure's URIs, in which a container or an account stands before the @, not a user.

`abfs://container@account.dfs.core.windows.net/path`, `abfs://account.blob.core.windows.net/container/path`,
`abfs://account@container/path` and `abfs://account@host:port/container/path` are read, as pyarrow does.
"""

from __future__ import annotations

SCHEMES = ("abfs", "abfss")
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
