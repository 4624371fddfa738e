"""Tables of Arrow batches as sources of rows: Parquet, Arrow IPC, Hugging Face folders, Delta, Iceberg, Lance."""
