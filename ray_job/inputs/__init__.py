"""Where rows come from: `opening.py` turns a spec into a `Source`, `datasource.py` gives it to Ray."""
