"""Globs as regular expressions: `*`, `?`, sets such as `[!a-c]`, and `**` for any number of folders. Braces as the
paths they stand for: `{a,b}`, and `{000..012}` for numbers.

Whatever is no such part stands for itself, as in shells: no pattern is malformed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_BRACES = re.compile(r"\{(?:(?P<first>-?\d{1,9})\.\.(?P<last>-?\d{1,9})|(?P<words>[^{},]*(?:,[^{},]*)+))\}")


def braces_expanded(text: str) -> list[str]:
    """The texts that braces in one stand for, each once, as in shells: the last braces count fastest.

    Numbers have as many digits as the longer of their bounds where one of these begins with a zero.
    """
    found = _BRACES.search(text)
    if found is None:
        return [text]
    before, after = text[: found.start()], text[found.end() :]
    return list(dict.fromkeys(each for choice in _choices(found) for each in braces_expanded(before + choice + after)))


def glob_pattern(glob: str) -> re.Pattern[str]:
    """What matches whole relative paths. Sets, `*` and `?` never match a slash."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[!^]?+\]?+[^]]*+\])", glob)
    known = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = "".join(
        known[part] if part in known else _glob_class(part) if place % 2 else re.escape(part)
        for place, part in enumerate(parts)
    )
    return re.compile(regex, re.DOTALL)


def _glob_class(part: str) -> str:
    """A set of characters as shells read it: `!` or `^` at the start negates it, a backwards range is empty."""
    body = part[1:-1]
    is_other = body[0] in "!^"
    body = body[1:] if is_other else body
    items = [f"{re.escape(first)}-{re.escape(last)}" for first, last in _ranges(body) if first <= last]
    if not items:
        return "[^/]" if is_other else "(?!)"
    return f"[^/{''.join(items)}]" if is_other else f"(?!/)[{''.join(items)}]"


def _ranges(body: str) -> Iterator[tuple[str, str]]:
    """The first and last character of each part of a set."""
    place = 0
    while place < len(body):
        is_range = body[place + 1 : place + 2] == "-" and place + 2 < len(body)
        yield body[place], body[place + 2] if is_range else body[place]
        place += 3 if is_range else 1


def _choices(braces: re.Match[str]) -> list[str]:
    if braces["words"] is not None:
        return braces["words"].split(",")
    first, last = braces["first"], braces["last"]
    width = max(len(first), len(last)) if any(re.match(r"-?0\d", bound) for bound in (first, last)) else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
