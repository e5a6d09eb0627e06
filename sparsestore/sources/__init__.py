"""Input formats, one a file; `registry.open_source` finds the right one."""
