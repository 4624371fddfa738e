"""Pages of documents: PDF files, and TIFF files of several pages, opened and drawn in a process of their own."""
