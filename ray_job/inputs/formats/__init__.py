"""Parquet, JSON lines and picture folders as sources of rows."""
