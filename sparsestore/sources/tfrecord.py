"""TFRecord files of ``tf.train.Example`` or ``ExampleListWithContext``, without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, index_dtype, summed
from sparsestore.errors import SourceError
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources import options
from sparsestore.sources.base import Block
from sparsestore.sources.file import shown
from sparsestore.sources.text import TextFile

if TYPE_CHECKING:
    from sparsestore.kernels.example import Examples, Feature, Lists, Records, Wanted

__all__ = ["TfrecordSource"]

Array = NDArray[Any]

_PIECE = 8 << 20
_LONG_RECORD, _LONGEST_RECORD = 1 << 20, 8 << 20  # allowed at any max_bytes; never exceeded
_FIRST_PIECE = 1 << 20
_BYTE_COST = {
    "example": 32,
    "elwc": 64,
}  # bytes held for one that is read: of a packed list of small ids; of empty rows
_MAX_VALUES = 1 << 20
_CONTEXT = "context."
_LAYOUTS = ("example", "elwc")
_MISSING = ("error", "zero")
_COMPRESSIONS = {"none": "", "gzip": ".gz", "zlib": ".zlib"}
_DTYPES = ("string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_KINDS = ("nothing", "bytes_list", "float_list", "int64_list")


class _Column(NamedTuple):
    """A feature that becomes a column."""

    feature: str
    name: str
    dtype: str


class _Piece(NamedTuple):
    """Whole records, one behind the other."""

    text: NDArray[np.uint8]
    records: Records
    first: int
    """Number of the first."""
    start: int
    """Where it begins in the file."""
    position: int
    """How far the file has been read."""


class _Side:
    """What is wanted of an example, or of a context, and where it goes."""

    def __init__(self) -> None:
        self.features: list[Feature] = []
        self.always: set[bytes] = set()  # features that must be there
        self.columns: dict[int, list[_Column]] = {}  # by role
        self.n_features = 0

    def names(self) -> list[bytes]:
        return [feature.name for feature in self.features]


class _Parsed(NamedTuple):
    piece: _Piece
    rows: Examples
    lists: Lists | None
    contexts: Examples | None


class TfrecordSource:
    """Rows of a TFRecord file, compressed or not: a ``tf.train.Example`` each, or lists of them.

    The file is read once, in pieces; all that `blocks` holds at a time takes at most `max_bytes` + 16 MiB (and a
    decompressor's window: `text.TextFile`), where no record is longer than a hundredth of `max_bytes`. A record may
    have `max_bytes` / 8 bytes, but 1 MiB always and 8 MiB at most. Long ones take more memory: at worst, packed ids
    below 128 in no order, 35 times their length, and one more is read than there are cores.

    Say what of the messages is the matrix: `indices` and `values`, `indices` alone, or `features`. Both checksums of
    each record are compared. Lists may be packed or not; features that are not named are skipped; of several of one
    name in an example the last counts, as protobuf has it. Indices in any order are sorted, values at one place summed.
    A number beyond the dtype is an error, never inf. Features that no example of the file has are an error, too.

    A data set of several files is converted one by one: the first, and the others by `append`.

    Parameters
    ----------
    path : Path
    layout : {"example", "elwc"}
        What a record is: ``tf.train.Example``, a row; or ``ExampleListWithContext``, a row for each of its examples,
        with the column "qid", the number of the list. There ``context.NAME`` is a feature of the list's context, which
        each of its rows gets; features of the matrix are those of the examples, then those of the context. The one
        reads as the other without an error, so this is never guessed.
    indices, values : str, optional
        Features with the feature numbers of a row's entries and their values (`tf.io.SparseFeature`), whole numbers or
        floats. Without `values` each index counts 1 (`tf.io.VarLenFeature` of ids).
    features : sequence of str, or str, optional
        In place of these: features with as many numbers in each example (`tf.io.FixedLenFeature`). Zeros are no
        entries. ``["age", "vector[64]"]`` or ``"age,vector[64]"``; without a length it is that of the first examples.
        Those of one number give their name to a feature of the matrix, others ``vector[0]``, ``vector[1]``, ...
    label, weight : str, optional
        Features of one number that become the columns "y" and "sample_weight".
    keep : sequence of str, or str, optional
        Other features of one value that become columns, of their own names: text, or what is said behind a colon:
        ``["user", "when:int64", "price:float32"]`` or ``"user,when:int64"``.
    n_features : int, optional
        Width of the matrix of `indices`; a higher index is an error. Without it the width is what the last block says.
    zero_based : bool
        Whether the first feature of `indices` is called 0; else it is 1.
    missing : {"error", "zero"}
        What it means that an example lacks a feature, or has it without values where it needs some: an error, or no
        entries. Then a kept float is nan and text "". Labels, weights and whole numbers must be there in any case. An
        empty list of indices is a row without entries.
    compression : {"none", "gzip", "zlib"}, optional
        As TensorFlow's `compression_type`. By default what the suffix says (``.gz``), or none.
    dtype : float32 or float64
        Of values, labels and weights.
    """

    unit = "bytes"
    sorted_rows = True
    n_rows: int | None = None

    def __init__(
        self,
        path: Path,
        *,
        layout: str = "example",
        indices: str | None = None,
        values: str | None = None,
        features: Sequence[str] | str | None = None,
        label: str | None = None,
        weight: str | None = None,
        keep: Sequence[str] | str | None = None,
        n_features: int | None = None,
        zero_based: bool = True,
        missing: str = "error",
        compression: str | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        if layout not in _LAYOUTS:
            raise ValueError(f"layout={layout!r}, expected one of {', '.join(_LAYOUTS)}")
        if missing not in _MISSING:
            raise ValueError(f"missing={missing!r}, expected one of {', '.join(_MISSING)}")
        if compression not in (None, *_COMPRESSIONS):
            raise ValueError(f"compression={compression!r}, expected one of {', '.join(_COMPRESSIONS)}")
        if (indices is None) == (features is None) or (values is not None and indices is None):
            raise ValueError(
                f"{path}: expected indices=, with values= or without, or features=: which features are the matrix"
            )
        if features is not None and n_features is not None:
            raise ValueError(f"{path}: n_features is for indices=, expected none beside features=")
        if n_features is not None:
            options.check_n_features(n_features)
            if not n_features:
                raise ValueError("n_features=0, expected at least 1")
        self.name = str(path)
        self._file = TextFile(path, None if compression is None else _COMPRESSIONS[compression])
        self.size: int | None = self._file.size
        self._dtype = options.text_dtype(dtype, "TFRecord")
        self.dtype: np.dtype[Any] | None = self._dtype
        self._layout = layout
        self._base = 0 if zero_based else 1
        self._missing = missing
        self.n_features = n_features
        self.feature_names: list[str] | None = None
        self._options = {
            "layout": layout,
            "indices": indices,
            "values": values,
            "features": features if features is None or isinstance(features, str) else list(features),
            "label": label,
            "weight": weight,
            "keep": keep if keep is None or isinstance(keep, str) else list(keep),
            "n_features": n_features,
            "zero_based": zero_based if indices is not None else None,
            "missing": missing,
            "compression": compression,
            "dtype": str(self._dtype),
        }
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {"qid": ("int64", ())} if layout == "elwc" else {}
        self._rows, self._contexts = _Side(), _Side()
        self._set_features(indices, values, options.parts(features), label, weight, options.parts(keep))

    def _set_features(
        self,
        indices: str | None,
        values: str | None,
        features: list[str],
        label: str | None,
        weight: str | None,
        keep: list[str],
    ) -> None:
        """Decide what each feature is."""
        from sparsestore.kernels import example as e

        optional = self._missing == "zero"
        for name, option, role in ((indices, "indices", e.INDICES), (values, "values", e.VALUES)):
            if name is not None:
                if self._side(name)[0] is self._contexts:
                    raise ValueError(f"{self.name}: {option}={name!r}: expected a feature of the examples")
                self._take(name, option, role, needed=not optional)
        if features:
            sized = self._sized(features)
            names: list[str] = []
            for side in (self._rows, self._contexts):
                for name, size in sized:
                    if self._side(name)[0] is side:
                        self._take(name, "features", e.FEATURE, side.n_features, size, needed=not optional)
                        side.n_features += size
                        names += [name] if size == 1 else [f"{name}[{k}]" for k in range(size)]
            self.feature_names, self.n_features = names, len(names)
        for given, option, column in ((label, "label", "y"), (weight, "weight", "sample_weight")):
            if given is not None:
                self._keep(given, option, _Column(given, column, self._dtype.name), needed=True)
        for each in keep:
            name, _, dtype = each.rpartition(":") if ":" in each else (each, "", "string")
            if dtype not in _DTYPES:
                raise ValueError(f"{self.name}: keep={each!r}: expected name:dtype with one of {', '.join(_DTYPES)}")
            self._keep(name, "keep", _Column(name, name, dtype), needed=not optional)

    def _side(self, name: str) -> tuple[_Side, str]:
        """Whether a feature is one of the examples or of their context, and its name in there."""
        if self._layout == "elwc" and name.startswith(_CONTEXT):
            return self._contexts, name.removeprefix(_CONTEXT)
        return self._rows, name

    def _take(self, name: str, option: str, role: int, place: int = 0, size: int = 1, *, needed: bool = True) -> None:
        """Want a feature."""
        from sparsestore.kernels.example import Feature

        side, inner = self._side(name)
        if not inner:
            raise ValueError(f"{self.name}: {option}={name!r}: expected the name of a feature")
        if inner.encode() in side.names():
            raise ValueError(f"{self.name}: {option}={name!r}: the feature is taken already")
        side.features.append(Feature(inner.encode(), role, place, size, needed))

    def _keep(self, name: str, option: str, column: _Column, *, needed: bool) -> None:
        """Want a feature as a column."""
        from sparsestore.kernels import example as e

        kind = "O" if column.dtype == "string" else np.dtype(column.dtype).kind
        role = {"O": e.TEXT, "f": e.NUMBER}.get(kind, e.WHOLE)
        side, inner = self._side(name)
        columns = side.columns.setdefault(role, [])
        self._take(name, option, role, len(columns), needed=needed or role == e.WHOLE)
        if option != "keep" or role == e.WHOLE:
            side.always.add(inner.encode())
        columns.append(column)
        if column.name in self.columns:
            raise ValueError(f"{self.name}: two features become the column {column.name!r}: keep one of them")
        self.columns[column.name] = column.dtype, ()

    def _sized(self, features: list[str]) -> list[tuple[str, int]]:
        """Names of dense features, and how many numbers each has: as said, or as in the first examples."""
        found: dict[str, int] = {}
        for each in features:
            said = re.fullmatch(r"(.+)\[([0-9]{1,7})\]", each, re.DOTALL)
            name, size = (said[1], int(said[2])) if said else (each, 0)
            if said and not size:
                raise ValueError(f"{self.name}: features={each!r}: expected a length of at least 1")
            if name in found:
                raise ValueError(f"{self.name}: features={name!r}: the feature is taken already")
            found[name] = size
        unknown = {name for name, size in found.items() if not size}
        for name, size in self._first_lengths(unknown) if unknown else ():
            found[name] = found[name] or size
        if lost := sorted(name for name, size in found.items() if not size):
            raise SourceError(
                f"{self.name}: the first examples have no values of {', '.join(map(shown, lost[:8]))}: check the names "
                f"and the layout, or say the lengths, such as {lost[0]}[1]"
            )
        if sum(found.values()) > _MAX_VALUES:
            raise ValueError(f"{self.name}: {sum(found.values())} features, expected at most {_MAX_VALUES}")
        return list(found.items())

    def _first_lengths(self, names: set[str]) -> Iterator[tuple[str, int]]:
        """Lengths of dense features in the first examples, which need not all have all of them."""
        from sparsestore.kernels import example as e

        with closing(self._pieces(_FIRST_PIECE, _LONGEST_RECORD)) as pieces:
            piece = next(pieces, None)
        if piece is None:
            raise SourceError(f"{self.name}: there are no records: say the lengths of the features, such as name[1]")
        places = [(start, start + length, "") for start, length in zip(*piece.records[3:5], strict=True)]
        if self._layout == "elwc":
            lists = e.lists(piece.text, piece.records.starts, piece.records.lengths)
            places = [(*place, "") for place in zip(lists.begins.tolist(), lists.ends.tolist(), strict=True)]
            places += [(*place, _CONTEXT) for place in lists.contexts.tolist()]
        left = set(names)
        for begin, end, prefix in places:
            if not left:
                return
            try:
                values = e.features_of(piece.text[begin:end].tobytes())
            except ValueError:
                continue  # what is wrong is found, and said, once it is read
            for name in sorted(left):
                inner = name.removeprefix(prefix).encode() if name.startswith(prefix) else b""
                if self._side(name)[0] is (self._contexts if prefix else self._rows) and values.get(inner):
                    left.remove(name)
                    yield name, len(values[inner])

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options that say how the file was read."""
        return options.provenance(self._file.path, "tfrecord", self._options)

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order; `x.n_features` grows where it is not known."""
        from sparsestore.kernels import example as e

        n_threads = n_cores()
        n_columns = len(self.columns)
        cost = _BYTE_COST[self._layout] + n_columns * (4 if self._layout == "example" else 16)
        size = min(_PIECE, max(max_bytes // (cost * (n_threads + 1)), 4096))
        longest = min(max(max_bytes // 8, _LONG_RECORD), _LONGEST_RECORD)
        rows, contexts = e.wanted_of(self._rows.features), e.wanted_of(self._contexts.features)
        seen = np.zeros(len(self._rows.features), bool), np.zeros(len(self._contexts.features), bool)
        width = self.n_features or 0
        n_rows = nnz = 0
        pieces = self._pieces(size, longest)
        with closing(mapped(lambda piece: self._parsed(piece, rows, contexts), pieces, n_threads)) as parsed:
            for part in parsed:
                for noted, found in zip(seen, (part.rows, part.contexts), strict=True):
                    if found is not None:
                        noted |= found.seen
                n_rows += len(part.rows.indptr) - 1
                nnz += len(part.rows.indices)
                if self.n_features is None and len(part.rows.indices):
                    width = max(width, int(part.rows.indices.max()) + 1)
                yield from self._blocks(part, width, max_bytes)
        self._check_end(seen, n_rows, nnz)

    def _check_end(self, seen: tuple[Array, Array], n_rows: int, nnz: int) -> None:
        """A name that is in no example was meant otherwise, and a matrix without entries has no width."""
        names = [feature.name for feature, found in zip(self._rows.features, seen[0], strict=True) if not found]
        names += [
            _CONTEXT.encode() + feature.name
            for feature, found in zip(self._contexts.features, seen[1], strict=True)
            if not found
        ]
        if n_rows and names:
            raise SourceError(
                f"{self.name}: none of the {n_rows} examples has the feature {shown(names[0])}: check the name and the "
                "layout"
            )
        if self.n_features is None and not nnz:
            raise SourceError(
                f"{self.name}: {f'none of the {n_rows} rows has an entry' if n_rows else 'there are no records'}: give "
                "n_features if that is meant"
            )

    def _pieces(self, size: int, longest: int) -> Generator[_Piece, None, None]:
        """Whole records, so many bytes at a time."""
        from sparsestore.kernels import example as e

        tail, held, needed = list[NDArray[np.uint8]](), 0, 0
        number = start = 0
        position = 0
        with closing(self._file.chunks(size)) as chunks:
            for chunk, position in chunks:
                tail.append(chunk)
                held += len(chunk)
                if held < needed:
                    continue
                text = np.frombuffer(b"".join(tail), np.uint8)  # type: ignore[arg-type]
                found = e.records(text, longest)
                if len(found.starts):
                    yield _Piece(text, found, number, start, position)
                number, start = number + len(found.starts), start + found.stop
                if found.status != e.OK:
                    raise self._frame_error(text[found.stop :], found, number, start, longest)
                tail, held, needed = [text[found.stop :].copy()], len(text) - found.stop, found.needed
        if held:
            what = f"has {held} bytes, expected {needed}" if needed > 12 else f"begins with {held} bytes, expected 12"
            raise SourceError(f"{self.name}: record {number} (byte {start}): cut short: it {what} or more")

    def _frame_error(self, text: Array, found: Records, number: int, start: int, longest: int) -> SourceError:
        from sparsestore.kernels import example as e

        if found.status == e.TOO_LONG:
            hint = "" if longest == _LONGEST_RECORD else ": give a larger max_bytes"
            reason = f"it has {found.needed} bytes, expected at most {longest}{hint}"
        else:
            reason = f"the checksum of its length is wrong, found {shown(text[:12].tobytes())}: "
            packed = {b"\x1f\x8b": "gzip", b"\x78": "zlib"}
            kind = next((name for mark, name in packed.items() if text[:2].tobytes().startswith(mark)), None)
            if kind and not number and not self._file.compressed:
                reason += f"give compression={kind!r} if the file is compressed"
            else:
                reason += "the file is damaged, or no TFRecord file" if not number else "the file is damaged"
        return SourceError(f"{self.name}: record {number} (byte {start}): {reason}")

    def _parsed(self, piece: _Piece, wanted: Wanted, wanted_of_contexts: Wanted) -> _Parsed:
        """The rows of a piece, in order."""
        from sparsestore.kernels import example as e
        from sparsestore.kernels import frames

        starts, lengths = piece.records.starts, piece.records.lengths
        bad = frames.first_damaged(piece.text, starts, lengths, piece.records.checksums)
        if bad >= 0:
            raise self._error(
                piece, bad, f"the checksum of its {int(lengths[bad])} bytes is wrong: the file is damaged"
            )
        limit = 2**63 - 3 if self.n_features is None else self.n_features - 1
        if self._layout == "example":
            rows = e.examples(piece.text, starts, starts + lengths, wanted, base=self._base, limit=limit)
            if rows.status != e.OK:
                raise self._error(piece, rows.row, self._reason(rows, self._rows))
            return _Parsed(piece, self._in_order(rows), None, None)
        lists = e.lists(piece.text, starts, lengths)
        if lists.status != e.OK:
            several = lists.status == e.SEVERAL_CONTEXTS
            reason = "it has several contexts" if several else "it is no message ExampleListWithContext"
            raise self._error(piece, lists.record, f"{reason}: check the layout")
        begins, ends = lists.contexts[:, 0].copy(), lists.contexts[:, 1].copy()
        contexts = e.examples(piece.text, begins, ends, wanted_of_contexts)
        if contexts.status != e.OK:
            raise self._error(piece, contexts.row, f"context: {self._reason(contexts, self._contexts)}")
        rows = e.examples(piece.text, lists.begins, lists.ends, wanted, base=self._base, limit=limit)
        if rows.status != e.OK:
            record = int(lists.of[rows.row])
            inner = rows.row - int(np.searchsorted(lists.of, record))
            raise self._error(piece, record, f"example {inner}: {self._reason(rows, self._rows)}")
        return _Parsed(piece, self._in_order(rows), lists, contexts)

    def _in_order(self, rows: Examples) -> Examples:
        """Rows sorted, with one entry a place."""
        from sparsestore.kernels import bucket

        if rows.ascending:
            return rows
        bucket.sort_in_rows(rows.indptr, rows.indices, rows.values)
        found, _ = summed(Rows(rows.indptr, rows.indices, rows.values, 0))  # float64 has any sum of float32, or int64
        return rows._replace(indptr=found.indptr, indices=found.indices, values=found.data)

    def _blocks(self, parsed: _Parsed, width: int, max_bytes: int) -> Iterator[Block]:
        rows, piece = parsed.rows, parsed.piece
        n = len(rows.indptr) - 1
        if not n:
            return
        offset = self._contexts.n_features
        columns: dict[str, Array] = {}
        if parsed.lists is not None:
            columns["qid"] = piece.first + parsed.lists.of
        made = self._columns(parsed, rows, self._rows)
        values = self._rounded(parsed, rows, rows.values, None)
        indices = rows.indices.astype(index_dtype(width), copy=False)
        x = Rows(rows.indptr, indices, values, width)
        if parsed.lists is None or parsed.contexts is None or not self._contexts.features:
            columns |= made
            yield Block(x, {name: columns[name] for name in self.columns}, piece.position)
            return
        of, contexts = parsed.lists.of, parsed.contexts
        behind = (
            contexts.indptr,
            (contexts.indices + width - offset).astype(index_dtype(width)),
            self._rounded(parsed, contexts, contexts.values, None),
        )
        shared = self._columns(parsed, contexts, self._contexts)
        yield from self._joined(x, {**columns, **made}, behind, shared, of, piece.position, max_bytes)

    def _joined(
        self,
        x: Rows,
        columns: dict[str, Array],
        behind: tuple[Array, Array, Array],
        shared: dict[str, Array],
        of: NDArray[np.int64],
        position: int,
        max_bytes: int,
    ) -> Iterator[Block]:
        """Rows with what their contexts have, few at a time: a list of many rows has a context for each of them."""
        from sparsestore.kernels import example as e

        entry = 2 * (x.indices.itemsize + x.data.itemsize)
        cost = 8 * (len(self.columns) + 2) + entry * np.diff(behind[0])
        for column in shared.values():
            if column.dtype == object:
                cost += np.array([4 * len(text) for text in column], np.int64)
        ends = np.cumsum(cost[of] + entry * np.diff(x.indptr))
        start, n = 0, len(x)
        while start < n:
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + max_bytes // 4, side="right")))
            part = x.slice(start, stop)
            arrays = e.joined(part.indptr, part.indices, part.data, of[start:stop], behind)
            every = {name: column[start:stop] for name, column in columns.items()}
            every |= {name: column[of[start:stop]] for name, column in shared.items()}
            yield Block(Rows(*arrays, x.n_features), {name: every[name] for name in self.columns}, position)
            start = stop

    def _columns(self, parsed: _Parsed, rows: Examples, side: _Side) -> dict[str, Array]:
        """Columns of the examples, or of the contexts, in their dtypes."""
        from sparsestore.kernels import example as e

        columns: dict[str, Array] = {}
        for place, column in enumerate(side.columns.get(e.NUMBER, ())):
            exact = np.ascontiguousarray(rows.numbers[:, place])
            noun = {"y": "label", "sample_weight": "weight"}.get(column.name)
            finite = np.isfinite(exact)
            if noun and not finite.all():
                at = int(np.argmin(finite))
                reason = f"the {noun} {shown(column.feature)} is {exact[at]}, expected a finite number"
                raise self._row_error(parsed, rows, at, reason)
            columns[column.name] = self._rounded(parsed, rows, exact, column)
        for place, column in enumerate(side.columns.get(e.WHOLE, ())):
            whole = np.ascontiguousarray(rows.wholes[:, place])
            limits = np.iinfo(column.dtype)
            wrong = (whole < limits.min) | (whole > min(limits.max, 2**63 - 1))
            if wrong.any():
                at = int(np.argmax(wrong))
                reason = f"feature {shown(column.feature)} is {int(whole[at])}, which {column.dtype} lacks"
                raise self._row_error(parsed, rows, at, reason)
            columns[column.name] = whole.astype(column.dtype)
        for place, column in enumerate(side.columns.get(e.TEXT, ())):
            texts = np.empty(len(rows.spans), object)
            for row, (begin, end) in enumerate(rows.spans[:, place].tolist()):
                try:
                    texts[row] = parsed.piece.text[begin:end].tobytes().decode()
                except UnicodeDecodeError:
                    found = shown(parsed.piece.text[begin:end].tobytes())
                    reason = f"feature {shown(column.feature)} is no UTF-8 text, found {found}"
                    raise self._row_error(parsed, rows, row, reason) from None
            columns[column.name] = texts
        return columns

    def _rounded(self, parsed: _Parsed, rows: Examples, exact: Array, column: _Column | None) -> Array:
        """Numbers in their dtype; `column` is None for values."""
        dtype = self._dtype if column is None else np.dtype(column.dtype)
        if column is not None and column.name == "y":
            values, at, wrong = options.rounded_labels(exact, dtype)
        else:
            values, at = options.rounded(exact, dtype)
            wrong = f"is beyond {dtype}"
        if at is None:
            return values
        row = at if column is not None else int(np.searchsorted(rows.indptr, at, side="right")) - 1
        noun = "value" if column is None else f"feature {shown(column.feature)}"
        own = column is not None and column.name not in ("y", "sample_weight")
        wider = f"keep it as '{column.feature}:float64'" if own and column else "give dtype='float64'"
        raise self._row_error(parsed, rows, row, f"{noun} {float(exact[at])!r} {wrong}: {wider}")

    def _row_error(self, parsed: _Parsed, rows: Examples, row: int, reason: str) -> SourceError:
        """What is wrong with a row, or with a context."""
        record = row if parsed.lists is None or rows is parsed.contexts else int(parsed.lists.of[row])
        return self._error(parsed.piece, record, reason)

    def _error(self, piece: _Piece, record: int, reason: str) -> SourceError:
        at = piece.start + int(piece.records.starts[record]) - 12
        return SourceError(f"{self.name}: record {piece.first + record} (byte {at}): {reason}")

    def _reason(self, found: Examples, side: _Side) -> str:
        from sparsestore.kernels import example as e

        feature = side.features[found.slot] if found.slot >= 0 else e.Feature(b"", e.TEXT)
        name = f"feature {shown(feature.name)}"
        other = "elwc" if self._layout == "example" else "example"
        if found.status == e.BROKEN:
            where = f"{name} of it" if found.slot >= 0 else "it"
            return f"{where} is no message tf.train.Example: check the layout, which could be {other!r}"
        if found.status == e.BAD_ENTRY:
            return f"a feature has not one name and one value: check the layout, which could be {other!r}"
        if found.status == e.SEVERAL_LISTS:
            return f"{name} is several kinds at once, expected one of {', '.join(_KINDS[1:])}"
        if found.status == e.WRONG_KIND:
            expected = {e.INDICES: "int64_list", e.WHOLE: "int64_list", e.TEXT: "bytes_list"}
            wanted = expected.get(feature.role, "float_list or int64_list")
            hint = " (kept without a dtype it is text)" if feature.role == e.TEXT else ""
            return f"{name} is a {_KINDS[found.found]}, expected {wanted}{hint}"
        if found.status == e.ABSENT:
            hint = "" if feature.name in side.always else ": give missing='zero' if that is meant"
            return f"{name} is missing{hint}"
        if found.status == e.WRONG_COUNT:
            return f"{name} has {found.found} values, expected {feature.size}"
        if found.status == e.UNEQUAL:
            return f"{name} has {found.found} values, expected one for each index"
        if found.status == e.OUT_OF_RANGE:
            if found.found < self._base:
                hint = ": give zero_based=True if the first feature is 0" if found.found == 0 else ""
                return f"{name}: index {found.found}, expected {self._base} or more{hint}"
            if self.n_features is None:
                return f"{name}: index {found.found}, expected at most {2**63 - 3 + self._base}"
            most = self.n_features - 1 + self._base
            return f"{name}: index {found.found}, expected at most {most} (n_features={self.n_features})"
        return f"{name} is a whole number that float64 may lack, from 2^53: keep it with :int64"
