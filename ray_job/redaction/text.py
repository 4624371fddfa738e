"""Texts without the credentials in them, wherever they stand: in URIs, connection strings, settings, tokens.

Of a URI the scheme, host and path stay; user names, passwords, options and fragments go. Where it is unclear how far a
password reaches, too much goes rather than too little. A URI without any of these stays as it is.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "…"
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\S*)")
_ENDS = re.compile(r"[\"<>`]|'(?![A-Za-z0-9_-])")  # a URI within a text ends here, unless its password goes on
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:@/?#'\"<>`]*)(:\d{1,5})?(?=$|[/?#'\"<>`,;)\]}|\\])")
_AZURE = ("abfs", "abfss", "wasb", "wasbs", "adl")  # container@account is an address, not a user
_NAMES = (
    r"account_?key|shared_?access_?key|shared_?access_?signature|sig|signature|x-amz-(?:signature|credential|"
    r"security-token)|(?:aws_)?(?:access_key_id|access_key|secret_access_key|secret_key|session_token)|secret|"
    r"client_secret|password|passwd|pwd|(?:\w+_)?(?:api_?key|access_token|auth_token)|(?:hf_)?token"
)
_SETTING = re.compile(
    rf"(?<![\w-])((?:{_NAMES})['\"]?\s?=\s?['\"]?|['\"](?:{_NAMES})\\?['\"]\s*:\s*\\?['\"])"
    r"[^\s'\"&;,\\]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,})\b")


def without_secrets(text: str) -> str:
    """The text with the credentials and options of every URI left out, and other secrets as `…`."""
    if "://" in text:
        text = _URI.sub(lambda match: f"{match[1]}://{_public(match[1].lower(), match[2])}", text)
    text = _SETTING.sub(rf"\g<1>{HIDDEN}", text)
    text = _BEARER.sub(rf"\g<1> {HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def public_uri(uri: str) -> str:
    """A URI without its credentials, options and fragment, blanks in its path or not; any other text as it is."""
    scheme, mark, rest = uri.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return uri
    return f"{scheme}://{_cut(_without_user(scheme.lower(), rest))}"


def without_parts_of(uri: str, text: str) -> str:
    """The text without what a URI hides, where others quote it piece by piece.

    Args:
        uri: may carry credentials, options and a fragment.
        text: a library's message about it.
    """
    hidden = {piece for piece in re.split(r"[:/@?#&=]", uri) if piece} - set(re.split(r"[:/@]", public_uri(uri)))
    for piece in sorted({*hidden, *map(unquote, hidden)}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(piece)}(?!\w)", HIDDEN, text)
    return text


def _public(scheme: str, rest: str) -> str:
    """What follows `://` in a text up to the next blank, without secrets."""
    rest = _without_user(scheme, rest)
    end = _ENDS.search(rest)
    if end is None:
        return _cut(rest)
    return _cut(rest[: end.start()]) + without_secrets(rest[end.start() :])  # where there may be URIs again


def _cut(rest: str) -> str:
    return re.split(r"[?#]", rest, maxsplit=1)[0]


def _without_user(scheme: str, rest: str) -> str:
    """What follows `://` without user name and password."""
    if _HOST.match(rest) and not _is_key_with_digits(scheme, rest):
        return rest
    region = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if ":" in region and "@" in rest:  # a password may hold slashes, and more
        user, _, rest = rest.rpartition("@")
        if re.search(r"[?#]", user):  # a password with a ? in it, or options with an @
            return HIDDEN
        return _container(scheme, user.partition(":")[0]) + rest
    if "@" in region:
        user, _, _ = region.rpartition("@")
        return _container(scheme, user) + rest[len(user) + 1 :]
    return rest


def _is_key_with_digits(scheme: str, rest: str) -> bool:
    """Whether what looks like a port is the beginning of a secret: a bucket has no port."""
    return (
        scheme in ("s3", "s3a", "s3n", "gs", "gcs", *_AZURE) and re.match(r"[^/?#'\"<>`]*:\d+/\S*@", rest) is not None
    )


def _container(scheme: str, user: str) -> str:
    return f"{user}@" if scheme in _AZURE and user else ""
