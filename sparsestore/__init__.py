"""Out-of-core storage for large sparse matrices, with shuffled batches for Keras."""

from sparsestore.errors import CorruptStoreError, FormatError, ResourceError, SourceError, SparsestoreError
from sparsestore.store import Column, Store, View, convert, create, open
from sparsestore.version import __version__

__all__ = [
    "Column",
    "CorruptStoreError",
    "FormatError",
    "ResourceError",
    "SourceError",
    "SparsestoreError",
    "Store",
    "View",
    "__version__",
    "convert",
    "create",
    "open",
]
