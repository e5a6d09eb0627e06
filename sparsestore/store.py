"""What users hold: a Store, views of it, and the functions that make one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from sparsestore import integrity, maintain
from sparsestore.convert import convert as convert_source
from sparsestore.manifest import read_manifest, versions
from sparsestore.plan.selection import Selection
from sparsestore.reader import Reader
from sparsestore.storage import LocalStorage, open_storage
from sparsestore.view import Column, View
from sparsestore.writer import append_to, create

__all__ = ["Column", "Store", "View", "convert", "create", "open"]


def open(path: str | os.PathLike[str], *, version: int | None = None, check: str = "first", mmap: bool = True) -> Store:
    """Open a store, pinned to its newest version or to another; costs the same at any size.

    Parameters
    ----------
    path : str or path-like
        Folder of the store, or a ``file://`` URL.
    version : int, optional
    check : {"first", "always", "never"}
        When stored bytes are compared with their checksums: the first time that this process touches them, each time,
        or never. That feature numbers are in range is checked the first time in any case.
    mmap : bool
        False reads with preadv in place of a memory map: slower, but a file cut short from outside then gives an
        error where a map would end the process.

    Returns
    -------
    Store

    Raises
    ------
    FileNotFoundError
        Where there is no store, or no such version.
    ValueError
        Where its format is not known.
    CorruptStoreError
        Where its manifest is damaged.
    """
    storage = open_storage(path)
    return Store(Reader(storage, read_manifest(storage, version), check=check, mmap=mmap), os.fspath(path))


def convert(
    source: Any,
    dst: str | os.PathLike[str],
    *,
    format: str | None = None,
    columns: Mapping[str, Any] | None = None,
    shuffle: bool = False,
    seed: int | None = None,
    profile: str = "raw",
    max_bytes: int | str = "1GiB",
    overwrite: bool = False,
    resume: bool = True,
    feature_names: Iterable[str] | None = None,
    workers: int = 1,
    progress: Any = None,
    **options: Any,
) -> Store:
    """Convert any data set into a store, once, in bounded memory.

    Parameters
    ----------
    source : path, scipy sparse matrix or array, dense 2-D array, Store or View, or iterable
        Of a path the name tells the format; see ``sparsestore convert --help`` for the list. An iterable, such as a
        generator, gives blocks of rows: ``x``, ``(x, y)``, ``(x, y, sample_weight)`` or ``(x, {"name": values})``.
    dst : str or path-like
        Folder of the new store.
    format : str, optional
        Where the name does not tell: "svmlight", "csv", "libffm", "matrix_market", "uci", "lda_c", "npz", "npy",
        "hdf5", "h5ad", "tenx", "binsparse", "sparsestore".
    columns : mapping of str to (n,) or (n, k) array, optional
        What stands beside each row, beside what the source itself has: "y", "sample_weight", ...
    shuffle : bool
        Put the rows into an exactly uniform random order, once; the column ``row_id`` keeps their numbers in the
        source. Otherwise row i of the store is row i of the source.
    seed : int, optional
        Of the shuffle; drawn, and recorded in the store, where left out.
    profile : {"raw", "compact"}
        "raw" can be memory-mapped and is fastest; "compact" is compressed, for slow disks.
    max_bytes : int or str
        Memory that the conversion may use beyond the source's own arrays.
    overwrite : bool
        Allow `dst` to be a store: its rows are replaced in a new version.
    resume : bool
        Go on with a conversion of the same source into `dst` that was interrupted, from its last whole part. An
        unfinished one of something else is a FileExistsError; False throws it away.
    feature_names : sequence of str, optional
        A name for each feature, no two alike; otherwise those of the source, where it has names.
    workers : int
        Processes that convert a part of a file or store each, at the same time, where it can be cut: see
        `sparsestore.convert.convert`.
    progress : callable, bool or None
        None shows a bar on a terminal and logs lines elsewhere, False shows nothing; a callable is called with how far
        a pass has come, its total where known, and the unit, "bytes" or "rows".
    **options
        Of the source: `n_features`, `dtype`, `zero_based`, `multilabel`, `qid`, `sort`, as the format has them; and
        `duplicates` ("sum", "last" or "error") where entries come in any order.

    Returns
    -------
    Store
        The new version, open.

    Raises
    ------
    FileNotFoundError, FileExistsError
    ValueError
        On a bad argument or bad input, naming file and line. Nothing is left at `dst` then.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, tempfile, sparsestore as ss
    >>> x = scipy.sparse.csr_array(np.array([[0, 2.5], [1, 0], [0, 0]]))
    >>> store = ss.convert(x, tempfile.mkdtemp() + "/tiny.zarr", columns={"y": [0, 1, 0]})
    >>> store[1:].toarray()
    array([[1., 0.],
           [0., 0.]])
    """
    version = convert_source(
        source,
        dst,
        format=format,
        columns=columns,
        shuffle=shuffle,
        seed=seed,
        profile=profile,
        max_bytes=max_bytes,
        overwrite=overwrite,
        resume=resume,
        feature_names=feature_names,
        workers=workers,
        progress=progress,
        **options,
    )
    return _of_new_version(open_storage(dst), os.fspath(dst), version)


def _of_new_version(storage: LocalStorage, path: str, version: int, **how: Any) -> Store:
    """Open what was published just now; where that fails, the error says that it is published all the same."""
    try:
        return Store(Reader(storage, read_manifest(storage, version), **how), path)
    except OSError as error:
        text = f"{path}: version {version} is published, but it can not be opened: {error.strerror or error}"
        raise (OSError(error.errno, text) if error.errno else type(error)(text)) from error


class Store(View):
    """A store, pinned to one version. Use it as a context manager, or let it go: it holds no lock.

    Examples
    --------
    >>> import numpy as np, tempfile, sparsestore as ss
    >>> path = tempfile.mkdtemp() + "/eye.zarr"
    >>> store = ss.convert(np.eye(4), path, columns={"y": [0, 1, 0, 1]})
    >>> store.shape, store.nnz, store.version
    ((4, 4), 4, 1)
    >>> store = store.append(np.ones((1, 4)), y=[1])
    >>> store.shape, store.version
    ((5, 4), 2)
    """

    def __init__(self, reader: Reader, path: str) -> None:
        super().__init__(reader, path, Selection.all(reader.segment_rows), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of open files. Arrays and batches handed out stay valid."""
        self._reader.close()

    @property
    def attrs(self) -> dict[str, Any]:
        """Free JSON kept with the version: where the data came from."""
        return dict(self._reader.manifest.attrs)

    @property
    def versions(self) -> list[int]:
        """Numbers of all versions that can be opened."""
        return versions(self._reader.storage)

    def _facts(self) -> dict[str, str]:
        facts = super()._facts()
        return {"shape": facts.pop("shape"), "entries": f"{self.nnz:,}", **facts}

    def append(self, x: Any, *, grow_features: bool = False, **columns: Any) -> Store:
        """Add rows at the end, as a new version; this object stays pinned to its own.

        Parameters
        ----------
        x : scipy sparse matrix or array, or dense 2-D array
        grow_features : bool
            Allow `x` to be wider than the store.
        **columns : array
            One for each column of the store.

        Returns
        -------
        Store
            The new version, open.

        Raises
        ------
        ValueError
            Where `x` or a column does not fit, or a column is missing.
        """
        storage = self._reader.storage
        with append_to(storage.root, grow_features=grow_features) as writer:
            writer.append(x, **columns)
            version = writer.publish()
        return _of_new_version(storage, self.path, version, check=self._reader.check, mmap=self._reader.mmap)

    def verify(self, *, deep: bool = True, progress: Any = None) -> list[str]:
        """Check this version; gives all problems, each as a line, and an empty list when it is sound.

        Parameters
        ----------
        deep : bool
            Every byte against its checksums, and every row and column against the rules of the format. False: the
            documents, and that each object is there with its length.
        progress : callable, bool or None
            None shows a bar on a terminal and logs lines elsewhere, False shows nothing; a callable is called with
            how far the check has come, its total, and the unit, "bytes", or "segments" where not `deep`.

        Returns
        -------
        list of str
            Store, version, key, byte range and rows of each problem, and what is wrong there. A damaged thing is one
            problem, as narrow as the checksums tell.

        Examples
        --------
        >>> import numpy as np, tempfile, sparsestore as ss
        >>> ss.convert(np.eye(4), tempfile.mkdtemp() + "/eye.zarr").verify()
        []
        """
        return integrity.verify(self._reader, deep=deep, progress=progress)

    def optimize(
        self,
        *,
        reshuffle: bool = False,
        seed: int | None = None,
        profile: str | None = None,
        max_bytes: int | str = "1GiB",
        progress: Any = None,
    ) -> Store:
        """Merge the small segments of the newest version into large ones, as after thousands of appends.

        Parameters
        ----------
        reshuffle : bool
            Put all rows in an exactly random order; the column ``row_id`` keeps the numbers they had.
        seed : int, optional
            Of the shuffle.
        profile : {"raw", "compact"}, optional
            Write all segments that have another one anew.
        max_bytes : int or str
            Memory that may be used.
        progress : callable, bool or None
            As in `convert`.

        Returns
        -------
        Store
            The new version, open, with the same rows; the newest where there was nothing to merge. See
            `sparsestore.maintain.optimize`.

        Examples
        --------
        >>> import numpy as np, tempfile, sparsestore as ss
        >>> store = ss.convert(np.eye(2), tempfile.mkdtemp() + "/eye.zarr")
        >>> for _ in range(3):
        ...     store = store.append(np.eye(2))
        >>> store = store.optimize()
        >>> store.shape, store.version
        ((8, 2), 5)
        """
        storage = self._reader.storage
        version = maintain.optimize(
            storage.root, reshuffle=reshuffle, seed=seed, profile=profile, max_bytes=max_bytes, progress=progress
        )
        return _of_new_version(storage, self.path, version, check=self._reader.check, mmap=self._reader.mmap)

    def gc(self, *, keep_versions: int = 1, older_than: str | float = "24h", dry_run: bool = False) -> list[str]:
        """Remove old versions and what no version needs; see `sparsestore.maintain.gc`."""
        root = self._reader.storage.root
        return maintain.gc(root, keep_versions=keep_versions, older_than=older_than, dry_run=dry_run)
