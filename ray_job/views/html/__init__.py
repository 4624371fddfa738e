"""`python -m ray_job report OUT`: one HTML file about a run, running or finished, that needs no network.

facts.py      what the page tells, read from the output's files: bounded however many rows there are
plots.py      small SVG charts
page.py       facts → HTML, everything a row says escaped
page.css, page.js   the page's only style and script; its policy lets no other run
"""
