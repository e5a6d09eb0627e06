"""svmlight / libsvm text: ``label [qid:n] index:value index:value ... # comment``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, summed
from sparsestore.errors import SourceError
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources import options
from sparsestore.sources.base import Block
from sparsestore.sources.file import shown
from sparsestore.sources.text import Piece, TextFile
from sparsestore.values import overflow

if TYPE_CHECKING:
    from sparsestore.kernels.tokenise import Lines

__all__ = ["SvmlightSource"]

_PIECE = 8 << 20
_LONG_LINE, _LONGEST_LINE = 1 << 20, 8 << 20  # allowed at any max_bytes; never exceeded
_FIRST_PASS = 16 << 20  # memory of a pass that is made before `max_bytes` is known
_MAX_LABELS = 65_536
_INT32_LIMIT = 2**31 - 2
_HIGHEST = 10**18 - 1  # the tokenizer reads 18 digits


class SvmlightSource:
    """Rows of an svmlight file, compressed or not; the label is column "y".

    The file is read once, in pieces; all that `blocks` holds at a time, the yielded block included, takes at most
    `max_bytes` + 16 MiB (and a decompressor's window: `text.TextFile`). A line may have `max_bytes` / 8
    bytes, but 1 MiB always and 8 MiB at most.

    Lines that are blank or start with # are skipped, # starts a comment, CRLF is fine; a line of a label alone is a row
    without entries. Explicit zeros are kept. Values may be nan and inf, labels may not; a number beyond the dtype is an
    error, never inf. A file in which no row has an entry is refused unless `n_features` is given: it is no matrix.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        Width of the matrix; a higher index is an error. Without it the width is what the last block says. Give it where
        train and test files must agree: a9a has 123 features and its test file only 122.
    zero_based : bool
        Whether the first feature is called 0. False, as libsvm defines it: index 0 is then an error.
    dtype : float32 or float64
        Of values and labels, which are read in float64 and rounded once.
    multilabel : bool or int
        Labels are lists such as ``0,2``, or absent. A number k: labels are 0 ... k - 1, and "y" is (n, k) uint8 with
        ones at a row's labels. True: the file is read twice, first for its distinct labels, which in ascending order
        are the columns of "y" (`provenance` tells them); then test data need the number to get the same columns.
    qid : bool, optional
        True: every row must have a ``qid:``, which is column "qid" (int64). False: they are skipped. None: as True if
        the first row has one; else a later one is an error.
    sort : bool
        Whether rows with indices out of order are sorted; else they are an error. Duplicate indices always are.
    """

    unit = "bytes"
    sorted_rows = True
    format = "svmlight"
    _entry = "index:value"
    _fields = False
    _summed = False
    n_rows: int | None = None

    def __init__(
        self,
        path: Path,
        *,
        n_features: int | None = None,
        zero_based: bool = False,
        dtype: DTypeLike = "float32",
        multilabel: bool | int = False,
        qid: bool | None = None,
        sort: bool = False,
    ) -> None:
        if n_features is not None:
            options.check_n_features(n_features)
            if not n_features:
                raise ValueError("n_features=0, expected at least 1")
        if not isinstance(multilabel, int) or not (isinstance(multilabel, bool) or 1 <= multilabel <= _MAX_LABELS):
            raise ValueError(
                f"multilabel={multilabel!r}, expected a number of labels from 1 to {_MAX_LABELS}, or True for those in "
                "the file"
            )
        self.name = str(path)
        self.n_features = n_features
        self.dtype: np.dtype[Any] | None = options.text_dtype(dtype)
        self._value_dtype = options.text_dtype(dtype)
        self._file = TextFile(path)
        self.size: int | None = self._file.size
        self._base = 0 if zero_based else 1
        self._sort = sort
        self._multilabel = multilabel is not False
        self._options = {
            "n_features": n_features,
            "zero_based": zero_based,
            "dtype": str(self.dtype),
            "multilabel": multilabel,
            "qid": qid,
            "sort": sort,
        }
        self._qid = 2 if qid is False else 1 if qid or self._starts_with_qid() else 0
        self._classes: NDArray[np.float64] | None = None
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {"y": (str(self.dtype), ())}
        if self._multilabel:
            self._classes = self._distinct_labels() if multilabel is True else np.arange(multilabel, dtype=np.float64)
            if not len(self._classes):
                raise SourceError(
                    f"{self.name}: no row has a label, expected at least one for multilabel=True: give their number, "
                    "multilabel=k, if that is meant"
                )
            self.columns["y"] = ("uint8", (len(self._classes),))
        if self._qid == 1:
            self.columns["qid"] = ("int64", ())

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options that say how the file was read."""
        facts = options.provenance(self._file.path, self.format, self._options)
        if self._options.get("multilabel") is True and self._classes is not None:
            facts["labels"] = self._classes.tolist()
        return facts

    def parts(self, n: int) -> list[Self]:
        """Sources of at most n consecutive parts of the file, cut at ends of lines; of one where it is compressed."""
        found = list[Self]()
        for file in self._file.parts(n):
            part = copy.copy(self)
            part._file, part.size = file, file.size
            found.append(part)
        return found

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order; `x.n_features` grows where `n_features` was not given."""
        width = self.n_features or 0
        n_rows = nnz = 0
        longest = min(max(max_bytes // 8, _LONG_LINE), _LONGEST_LINE)
        hint = "check the format" if longest == _LONGEST_LINE else "check the format, or give a larger max_bytes"
        for piece, lines in self._lines(max_bytes, longest, hint):
            n_rows += len(lines.starts)
            nnz += len(lines.indices)
            if self.n_features is None and len(lines.indices):
                width = max(width, int(lines.indices.max()) + 1)
            yield from self._blocks(piece, lines, width, max_bytes)
        whole = self._file.size == self._file.state.size  # a part may have no entry
        if self.n_features is None and nnz == 0 and whole:
            raise SourceError(
                f"{self.name}: {f'none of the {n_rows} rows has an entry' if n_rows else 'there are no rows'}, "
                f"expected label {self._entry} ...: check the format, or give n_features if that is meant"
            )

    def _lines(self, max_bytes: int, longest: int, hint: str) -> Iterator[tuple[Piece, Lines]]:
        """Parsed pieces, of such a size that all in flight stay below `max_bytes`, even for rows of 2 bytes."""
        import sparsestore.kernels.tokenise  # noqa: F401 - before threads need it

        n_threads = n_cores()
        piece_bytes = min(_PIECE, max(max_bytes // (24 * (n_threads + 1)), 4096))
        pieces = self._file.pieces(piece_bytes, longest, hint=hint)
        with closing(mapped(lambda piece: (piece, self._parsed(piece)), pieces, n_threads)) as parsed:
            yield from parsed

    def _parsed(self, piece: Piece) -> Lines:
        """The rows of a piece, in order, in the dtypes that they are to have: all that threads can do at once."""
        from sparsestore.kernels import tokenise

        narrow = _INT32_LIMIT if self.n_features is None else self.n_features - 1
        for limit in (narrow, _HIGHEST):  # where int32 is too narrow: int64
            lines = tokenise.svmlight(
                piece.text,
                base=self._base,
                limit=limit,
                ascending=not self._sort,
                multilabel=self._multilabel,
                qid=self._qid,
                fields=self._fields,
            )
            if lines.status != tokenise.OUT_OF_RANGE or self.n_features is not None:
                break
        if lines.status != tokenise.OK:
            raise self._error(piece, lines)
        if not lines.ascending:
            lines = self._in_order(piece, lines)
        if not self._multilabel:
            lines = lines._replace(labels=self._rounded(piece, lines, lines.labels, "label"))
        return lines._replace(values=self._rounded(piece, lines, lines.values, "value"))

    def _in_order(self, piece: Piece, lines: Lines) -> Lines:
        """Sort the entries of each row; those of one index are summed, or an error."""
        rows = np.repeat(np.arange(len(lines.starts)), np.diff(lines.indptr))
        order = np.lexsort((lines.indices, rows))
        indices = lines.indices[order]
        same = (indices[1:] == indices[:-1]) & (rows[1:] == rows[:-1])
        values = lines.values[order]
        if self._summed and same.any():
            found, bad = summed(Rows(lines.indptr, indices, values, 0))
            if bad is not None:
                row, index = found.place(bad)
                line = piece.line_at(int(lines.starts[row]))
                raise SourceError(f"{self.name}:{line}: index {index + self._base}: {overflow(values.dtype)}")
            return lines._replace(indices=found.indices, values=found.data, indptr=found.indptr)
        if same.any():
            at = int(np.argmax(same))
            raise SourceError(
                f"{self.name}:{piece.line_at(int(lines.starts[rows[at]]))}: index {int(indices[at]) + self._base} "
                "stands twice in the row, expected once"
            )
        return lines._replace(indices=indices, values=values)

    def _blocks(self, piece: Piece, lines: Lines, width: int, max_bytes: int) -> Iterator[Block]:
        n = len(lines.starts)
        if n == 0:
            return
        columns: dict[str, NDArray[Any]] = {}
        if self._classes is None:
            columns["y"] = lines.labels
        if self._qid == 1:
            columns["qid"] = lines.qids
        wide = width > _INT32_LIMIT + 1
        x = Rows(
            lines.indptr,
            lines.indices.astype(np.int64 if wide else np.int32, copy=False),
            lines.values,
            width,
        )
        if self._classes is None:
            yield Block(x, columns, piece.position)
            return
        step = max(1, max_bytes // 4 // max(1, len(self._classes)))
        for start in range(0, n, step):
            stop = min(start + step, n)
            y = self._indicator(piece, lines, start, stop)
            part = {name: column[start:stop] for name, column in columns.items()}
            yield Block(x.slice(start, stop), {"y": y, **part}, piece.position)

    def _rounded(self, piece: Piece, lines: Lines, exact: NDArray[np.float64], noun: str) -> NDArray[Any]:
        """Values, or a label a row, in the dtype."""
        if noun == "label":
            values, at, wrong = options.rounded_labels(exact, self._value_dtype)
        else:
            values, at = options.rounded(exact, self._value_dtype)
            wrong = f"is beyond {self._value_dtype}"
        if at is None:
            return values
        row = at if noun == "label" else int(np.searchsorted(lines.indptr, at, side="right")) - 1
        raise SourceError(
            f"{self.name}:{piece.line_at(int(lines.starts[row]))}: {noun} {float(exact[at])!r} {wrong}: "
            "give dtype='float64'"
        )

    def _indicator(self, piece: Piece, lines: Lines, start: int, stop: int) -> NDArray[np.uint8]:
        """Labels of some rows as a (stop - start, k) matrix of zeros and ones."""
        classes = self._classes
        if classes is None:
            raise TypeError("there are no classes without multilabel")
        first, last = int(lines.label_ptr[start]), int(lines.label_ptr[stop])
        labels = lines.labels[first:last]
        rows = np.repeat(np.arange(stop - start), np.diff(lines.label_ptr[start : stop + 1]))
        place = np.searchsorted(classes, labels)
        unknown = place == len(classes)
        unknown |= classes[np.where(unknown, 0, place)] != labels if len(classes) else True
        if unknown.any():
            at = int(np.argmax(unknown))
            raise SourceError(
                f"{self.name}:{piece.line_at(int(lines.starts[start + rows[at]]))}: label {labels[at]:.17g}, expected "
                f"a whole number from 0 to {len(classes) - 1} (multilabel={len(classes)})"
            )
        y = np.zeros((stop - start, len(classes)), np.uint8)
        y[rows, place] = 1
        return y

    def _distinct_labels(self) -> NDArray[np.float64]:
        """The first pass of ``multilabel=True``."""
        classes = np.empty(0)
        hint = "check the format, or say how many labels there are with multilabel="
        for piece, lines in self._lines(_FIRST_PASS, _LONG_LINE, hint):
            found, first = np.unique(lines.labels, return_index=True)
            new = np.sort(first[np.isin(found, classes, assume_unique=True, invert=True)])
            if len(classes) + len(new) > _MAX_LABELS:
                row = np.searchsorted(lines.label_ptr, new[_MAX_LABELS - len(classes)], side="right") - 1
                raise SourceError(
                    f"{self.name}:{piece.line_at(int(lines.starts[row]))}: more than {_MAX_LABELS} different labels: "
                    "check the format"
                )
            classes = np.union1d(classes, found)
        return classes

    def _starts_with_qid(self) -> bool:
        """Whether the first row has a query id."""
        for piece in self._file.pieces(65536, _LONGEST_LINE):
            for line in piece.text.tobytes().split(b"\n"):
                if tokens := line.split(b"#")[0].split():
                    return any(token.startswith(b"qid:") for token in tokens[:2])
        return False

    def _error(self, piece: Piece, lines: Lines) -> SourceError:
        from sparsestore.kernels import tokenise as t

        text = piece.text[lines.offset : lines.offset + 200].tobytes().split(b"\n")[0]
        token = (text.split() or [b""])[0] if text[:1].strip() else b""
        found = shown(token)
        base, n = self._base, self.n_features
        if lines.status != t.BAD_QID and token.count(b":") > 1 and not self._fields:
            reason = f"expected {self._entry}, found {found}: field:index:value is another format: give format='libffm'"
        elif lines.status == t.BAD_LABEL:
            reason = f"the label is not a finite number, found {found}"
            if b"," in token and not self._multilabel:
                reason += ": give multilabel= if rows have several labels"
        elif lines.status == t.BAD_INDEX:
            reason = f"expected {self._entry} with a whole index, found {found}"
            if b":" not in token:
                reason += ": is this a table of another format?"
        elif lines.status == t.BAD_VALUE:
            reason = f"the value after the colon is not a number that float64 can hold, found {found}"
        elif lines.status == t.BELOW_BASE:
            reason = f"index 0, expected 1 or more, found {found}: give zero_based=True if the first feature is 0"
        elif lines.status == t.OUT_OF_RANGE and n is None:
            reason = f"an index of more than 18 digits, found {found}"
        elif lines.status == t.OUT_OF_RANGE:
            reason = f"index too high, expected at most {n - 1 + base if n else 0} (n_features={n}), found {found}"
        elif lines.status == t.UNORDERED:
            reason = f"indices not ascending, found {found} after a higher one: give sort=True to sort the rows"
        elif lines.status == t.DUPLICATE:
            reason = f"an index stands twice in the row, expected once, found {found} again"
        elif lines.status == t.QID_PRESENT:
            reason = f"found {found} but the first row has no qid: give qid=True or qid=False"
        elif lines.status == t.QID_ABSENT:
            reason = "the row has no qid, and the first row has, or qid=True was given; qid=False skips them"
        else:
            reason = f"expected qid: and a whole number, found {found}"
        return SourceError(f"{self.name}:{piece.line_at(lines.offset)}: {reason}")
