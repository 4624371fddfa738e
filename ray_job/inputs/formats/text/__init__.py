"""Text files as sources of rows: JSON in all its forms, CSV and TSV, compressed and in any encoding."""
