"""The forms in which inputs hold rows: text files, tables, picture folders, WebDataset shards."""
