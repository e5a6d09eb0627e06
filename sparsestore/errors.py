"""The exception tree: each one is also the built-in that people already catch."""

from __future__ import annotations

__all__ = [
    "CorruptStoreError",
    "FormatError",
    "MissingStoreError",
    "ResourceError",
    "SourceError",
    "SparsestoreError",
    "StoreExistsError",
    "WorkerError",
]


class SparsestoreError(Exception):
    """What sparsestore raises on purpose, beside plain ValueError, KeyError and IndexError on bad arguments."""


class MissingStoreError(SparsestoreError, FileNotFoundError):
    """There is no store, or no such version of it."""


class StoreExistsError(SparsestoreError, FileExistsError):
    """There is something at the destination already."""


class FormatError(SparsestoreError, ValueError):
    """A store of a format that this release does not know, or a document that breaks the format's rules."""


class SourceError(SparsestoreError, ValueError):
    """Bad input data; the message starts with the file and, for text, the line (`path:line: reason`)."""


class ResourceError(SparsestoreError, MemoryError):
    """An operation would need more memory or disk than there is or was allowed; the message gives both numbers."""


class CorruptStoreError(SparsestoreError, OSError):
    """Bytes on disk are not the bytes that were written; the message names store, version, key, byte range and rows."""


class WorkerError(SparsestoreError, ChildProcessError):
    """A process that did a part of the work ended before it was done: killed, mostly, where memory is short."""
