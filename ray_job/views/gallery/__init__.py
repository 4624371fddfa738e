"""Rows for people to look at: pictures, what was asked, what was answered. Nothing here writes output.

cards.py          one output row beside the input row it came from, its pictures as thumbnails
preview.py        `preview(spec, n)`: a few rows answered now, by a model that stays loaded (`cluster/warm_actor.py`)
output_cards.py   rows of an output folder, running or finished, beside their input
render.py         cards as HTML or text
show.py           `show(…)`: cards in a notebook or a terminal
"""
