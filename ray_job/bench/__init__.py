"""Benchmarks: `python -m ray_job bench NAME`."""
