"""What a job tells Prometheus while it runs, by way of Ray; and the Grafana dashboard that shows it.

catalog.py    every metric: name, kind, labels, meaning; knows neither Ray nor an engine
publisher.py  once a second, from an actor's own numbers to `ray.util.metrics`
grafana.py    the dashboard, made from the catalog; `grafana.json` is what it made
"""
