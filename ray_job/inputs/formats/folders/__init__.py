"""Folders of pictures as sources of rows, with metadata files and captions."""
