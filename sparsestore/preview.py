"""What a conversion would do, told by converting the first part of its source into a store that is thrown away."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsestore import store
from sparsestore.columns import schema_of
from sparsestore.convert import convert, prepared
from sparsestore.format import ROW_ID
from sparsestore.manifest import versions
from sparsestore.sources.base import Block, Source
from sparsestore.storage import free_disk_bytes, open_storage
from sparsestore.writer import check_place

__all__ = ["Preview", "preview"]

_WARM, _SAMPLE = 64 << 10, 24 << 20
_BLOCK = 4 << 20
_HEAD_ROWS = 5
_NAMES = 10


@dataclass(frozen=True)
class Preview:
    """What a conversion would do; numbers of a part of the source are estimates for the whole.

    Attributes
    ----------
    source, format : str
    options : dict
        How the source would be read, as it is recorded in the store.
    read : float
        Share of the source that was looked at.
    rows, features, nnz : int or None
        None where the part tells nothing of the whole: rows of triples, features that are texts.
    dtype : str
    columns : dict of str to str
        Name and dtype of what would stand beside the rows.
    feature_names : list of str or None
        The first ones.
    head : list of dict
        The first rows as they are understood: "columns", "indices", "data", "features" (names). Of triples, the first
        rows of those that were read.
    steps : list of str
        What would be done, in order.
    store_bytes, scratch_bytes, free_bytes : int
        Of the store; of bucket files beside it; and what is free where the store would be.
    memory_bytes : int
        Bound of the anonymous memory, beside imported libraries and names of features.
    seconds : float
    problems : list of str
        Why the conversion would be refused.
    """

    source: str
    format: str
    options: dict[str, Any]
    read: float
    rows: int | None
    features: int | None
    nnz: int
    dtype: str
    columns: dict[str, str]
    feature_names: list[str] | None
    head: list[dict[str, Any]]
    steps: list[str]
    store_bytes: int
    scratch_bytes: int
    free_bytes: int
    memory_bytes: int
    seconds: float
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return asdict(self)


def preview(
    source: Any,
    dst: str | os.PathLike[str],
    *,
    columns: Mapping[str, Any] | None = None,
    profile: str = "raw",
    overwrite: bool = False,
    **arguments: Any,
) -> Preview:
    """Tell what `convert` with the same arguments would do, without writing to `dst`.

    The first 24 MiB of the source, about, are converted into a temporary folder, which takes up to some seconds: rows,
    sizes and times are scaled to the whole. A bad line further on is not seen.

    Parameters
    ----------
    source, dst, columns, profile, overwrite, **arguments
        As `sparsestore.convert.convert` takes them; a source that gives its blocks once can not be looked at before.

    Raises
    ------
    ValueError, FileNotFoundError
        As `convert`, for what it finds in the arguments and in the part that was read.
    """
    for name in ("resume", "progress"):
        arguments.pop(name, None)
    workers = arguments.pop("workers", 1)
    plan = prepared(source, columns=columns, **arguments)
    plan.parts(workers)
    schema = schema_of(plan.schema())
    opened = plan.source
    if getattr(opened, "_once", False) or hasattr(source, "read_next_batch"):
        raise ValueError(f"{opened.name}: gives its blocks once, so that it can not be looked at before")
    ways = ("shuffle", "seed", "max_bytes", "duplicates", "feature_names", "scratch")
    chosen = {name: arguments[name] for name in ways if name in arguments}
    if opened.sorted_rows:
        chosen.pop("duplicates", None)
    texts = hasattr(opened, "adopt")  # their number is known at the end
    if not texts:
        chosen.pop("feature_names", None)  # as many as the whole has
    with tempfile.TemporaryDirectory(prefix="sparsestore-preview-", dir=chosen.get("scratch")) as folder:
        warm, sample = _Sample(opened, _WARM), _Sample(opened, _SAMPLE)
        convert(warm, Path(folder) / "warm", profile=profile, progress=False, **chosen)  # what is compiled once
        start = time.perf_counter()
        convert(sample, Path(folder) / "part", profile=profile, progress=False, **chosen)
        seconds = time.perf_counter() - start
        part = Path(folder) / "part"
        n_bytes = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        with store.open(part) as found:
            rows, features = found.shape
            nnz, dtype = found.nnz, str(found.dtype)
            _check_lengths(plan, rows, features, sample.whole)
            names = found.feature_names if texts or plan.feature_names is None else plan.feature_names
            head = _head(found, plan.columns, names, bool(chosen.get("shuffle")))
            numbered = ROW_ID in found.columns
    factor = 1.0 if sample.whole else (opened.size or sample.position) / max(sample.position, 1)
    whole_rows = opened.n_rows
    if whole_rows is None and (sample.whole or opened.sorted_rows):
        whole_rows = round(rows * factor)
    spilled = sample.n_bytes * factor * ((not opened.sorted_rows) + (plan.seed is not None and not plan.in_one_pass))
    limit = plan.max_bytes
    scratch_bytes = int(spilled) if spilled > limit // 4 else 0
    provenance = opened.provenance()
    path = open_storage(dst)
    free = free_disk_bytes(path.root)
    store_bytes = int(n_bytes * factor)
    problems = []
    if versions(path) and not overwrite:
        problems.append(f"{path.name} is a store already: give overwrite=True (--overwrite), or append to it")
    else:
        try:
            check_place(path, overwrite=overwrite)
        except FileExistsError as error:
            problems.append(str(error))
    if store_bytes + scratch_bytes > free:
        problems.append(f"{path.name}: {free:,} bytes are free, and about {store_bytes + scratch_bytes:,} needed")
    kinds = {name: column.dtype for name, column in schema.items()} | ({ROW_ID: "int64"} if numbered else {})
    return Preview(
        source=opened.name,
        format=str(provenance.get("format", "memory")),
        options=dict(provenance.get("options", {})),
        read=min(1.0, 1 / factor),
        rows=whole_rows,
        features=opened.n_features
        if opened.n_features is not None
        else features
        if sample.whole or not texts
        else None,
        nnz=round(nnz * factor),
        dtype=dtype,
        columns=kinds,
        feature_names=None if names is None else names[:_NAMES].tolist(),
        head=head,
        steps=_steps(opened, plan.seed is not None, plan.in_one_pass, scratch_bytes, path.name, profile),
        store_bytes=store_bytes,
        scratch_bytes=scratch_bytes,
        free_bytes=free,
        memory_bytes=limit + (18 << 20),
        seconds=seconds * factor,
        problems=problems,
    )


def _check_lengths(plan: Any, rows: int, features: int, whole: bool) -> None:
    """Given columns and names of features against those that were seen; a source that knows its own was asked before.

    Raises
    ------
    ValueError
        Where there are too few, or, of the whole, too many.
    """
    source, names = plan.source, plan.feature_names
    if source.n_rows is None:
        for name, array in plan.columns.items():
            if len(array) < rows:
                raise ValueError(f"column {name!r} has {len(array)} values, and {source.name} more rows than that")
        if whole:
            plan.check_length(rows)
    if names is None or source.n_features is not None or hasattr(source, "adopt"):
        return
    if len(names) < features or (whole and len(names) > features):
        least = "" if whole else "at least "
        raise ValueError(
            f"feature_names has {len(names)} names, expected one for each of the {least}{features} features of "
            f"{source.name}"
        )


def _head(found: Any, columns: Mapping[str, Any], names: Any, shuffled: bool) -> list[dict[str, Any]]:
    """The first rows, as `sparsestore head` shows them."""
    stop = min(_HEAD_ROWS, found.shape[0])
    x = found[:stop]
    beside = {name: found.column(name)[:stop] for name in found.columns}
    if not shuffled:
        beside |= {name: values[:stop] for name, values in columns.items()}
    rows = []
    for row in range(stop):
        entries = slice(x.indptr[row], x.indptr[row + 1])
        rows.append(
            {
                "row": row,
                "columns": {name: values[row : row + 1].tolist()[0] for name, values in beside.items()},
                "indices": x.indices[entries].tolist(),
                "data": x.data[entries].tolist(),
                **({} if names is None else {"features": names[x.indices[entries]].tolist()}),
            }
        )
    return rows


def _steps(source: Source, shuffle: bool, in_passing: bool, scratch_bytes: int, name: str, profile: str) -> list[str]:
    """What would be done."""
    where = f"by bucket files of about {scratch_bytes:,} bytes" if scratch_bytes else "in memory"
    steps = [f"read {source.name}"]
    if not source.sorted_rows:
        steps.append(f"sort entries into rows, {where}")
    if shuffle:
        steps.append(f"put the rows in random order, {'in passing' if in_passing else where}")
    return [*steps, f"write {name}, profile {profile}"]


class _Sample:
    """The first blocks of a source, as a source of which only the end tells the shape."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        self._most = max_bytes
        self.name, self.dtype, self.columns = source.name, source.dtype, source.columns
        self.size, self.unit, self.sorted_rows = source.size, source.unit, source.sorted_rows
        self.n_features = source.n_features
        self.n_rows: int | None = None
        self.position = 0
        self.n_bytes = 0
        self.whole = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)  # feature names, dictionaries, columns of triples

    def provenance(self) -> dict[str, Any]:
        """That of the source, which the conversion does not go on with."""
        return {**self._source.provenance(), "source": f"a part of {self.name}"}

    def blocks(self, max_bytes: int) -> Iterator[Any]:
        """Yield blocks until there are enough."""
        self.n_bytes = 0
        for block in self._source.blocks(min(max_bytes, _BLOCK)):
            self.position = block.position
            self.n_bytes += block.x.nbytes if isinstance(block, Block) else 12 * len(block.rows)
            yield block
            if self.n_bytes >= self._most:
                return
        self.whole = True
