"""Which rows, in what order: integers in, integers out; no I/O, no frameworks."""
