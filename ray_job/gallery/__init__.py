"""Rows for people to look at: pictures, what was asked, what was answered. Nothing here writes output.

cards.py      one output row beside the input row it came from, its pictures as thumbnails
preview.py    `preview(spec, n)`: a few rows answered now, by a model that stays loaded
warm.py       what holds that model
output.py     rows of an output folder, running or finished, beside their input
show.py       `show(…)`: cards in a notebook or a terminal
"""
