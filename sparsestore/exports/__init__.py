"""Output formats, one a file: see `sparsestore.export`."""
