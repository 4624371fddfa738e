"""`show(…)`: the rows of a preview or of an output, side by side in a notebook, as text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from ray_job.views.gallery.cards import Card
from ray_job.views.gallery.output_cards import OutputGallery
from ray_job.views.gallery.preview import Preview
from ray_job.views.gallery.render import cards_html, cards_text


def show(results: Preview | str | PathLike[str], row_ids: Iterable[Any] | None = None, n: int = 12) -> None:
    """Shows pictures with their questions and answers: side by side in a notebook, as text elsewhere.

    Args:
        results: of `preview`, or the output folder of a job, running or finished.
        row_ids: which rows, in this order; by default a preview's all, or n from all over an output.
        n: most rows shown of an output.

    Raises:
        SpecError: the folder is no job's output.
        RayJobError: the storage fails.
    """
    wanted = None if row_ids is None else list(row_ids)
    footer = ""
    if isinstance(results, Preview):
        cards: Sequence[Card] = results.cards
        footer = results.summary
        if wanted is not None:
            cards = sorted((card for card in cards if card.row_id in wanted), key=lambda c: wanted.index(c.row_id))
    else:
        gallery = OutputGallery.open(str(results))
        cards = gallery.sample(n) if wanted is None else gallery.find(wanted)
        footer = "; ".join(gallery.problems)
    if _is_notebook():
        from IPython.display import HTML, display

        display(HTML(cards_html(cards, footer)))  # type: ignore[no-untyped-call]
    else:
        print(cards_text(cards, footer))


def _is_notebook() -> bool:
    """Whether a kernel runs this, so that HTML is shown."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
