"""Compiled loops, one topic a module; each has a plain twin that tests compare it with."""
