"""Numbers, times and names as the page writes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from ray_job.views.html import plots


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """The colours of a chart and what each means, given as CSS class and name."""
    return f'<ul class="legend">{"".join(f"<li class={style}>{name}</li>" for style, name in entries)}</ul>'


def short_count(count: int) -> str:
    """A count, in thousands or millions where it is large."""
    return f"{count:,}" if count < 1_000_000 else plots.number(count)


def date(unix_s: float) -> str:
    """A moment in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """A time span in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def short_seconds(seconds: float) -> str:
    """Seconds, to a tenth where they are few."""
    return f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def clock(seconds: float) -> str:
    """Seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_name(output: str) -> str:
    """The last folders of a path, enough to tell outputs apart."""
    return "/".join(output.rstrip("/").split("/")[-2:])
