"""Out-of-core storage for large sparse matrices, with shuffled batches for Keras."""

from sparsestore.errors import CorruptStoreError, FormatError, ResourceError, SourceError, SparsestoreError
from sparsestore.store import Column, Store, View, convert, create, open

__all__ = [
    "Column",
    "CorruptStoreError",
    "FormatError",
    "ResourceError",
    "SourceError",
    "SparsestoreError",
    "Store",
    "View",
    "convert",
    "create",
    "open",
]

__version__ = "0.1.0"
