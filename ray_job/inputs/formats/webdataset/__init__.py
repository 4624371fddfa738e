"""WebDataset shards as sources of rows: the samples of tar files."""
