"""svmlight text: ``label qid:7 index:value ...``, a line a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.exports.base import Table
from sparsestore.exports.text import Ends, write_lines
from sparsestore.sources.base import Block

__all__ = ["SvmlightExport"]

Heads = tuple[NDArray[np.uint8], NDArray[np.int64]]

_QIDS = 10**18  # readers take 18 digits without a sign


class SvmlightExport:
    """Labels, query numbers and entries. Explicit zeros are written, and numbers so that they come back exactly.

    A label is a finite number: text, nan and missing labels are refused, and query numbers of more than 18 digits or
    below 0. One of k values a row is a list of labels:
    those that are 1, where all are 0 or 1. The width of the matrix is not in the file: a warning says so where the last
    feature has no entry.

    Parameters
    ----------
    label : str, optional
        Column with the labels; "y" by default. A store without it gets labels 0, with a warning.
    zero_based : bool
        Whether the first feature is called 0. False, as libsvm defines it.
    qid : bool, optional
        Whether the column "qid" is written; where it is there and has whole numbers, by default.
    """

    def __init__(
        self, table: Table, suffix: str, *, label: str | None = None, zero_based: bool = False, qid: bool | None = None
    ) -> None:
        self._table, self._suffix = table, suffix
        self._base = 0 if zero_based else 1
        columns = table.columns
        name = "y" if label is None else label
        if label is not None and label not in columns:
            raise ValueError(f"label={label!r}: there is no such column, there are {sorted(columns) or 'none'}")
        self._label = name if name in columns else None
        if self._label and columns[name][0] == "string":
            raise ValueError(
                f"column {name!r} is text, and labels of svmlight are numbers: give label=, another column"
            )
        self._many = bool(self._label and columns[name][1])
        whole = columns.get("qid", ("", ()))
        can = whole[1] == () and np.dtype(whole[0] or "f8").kind in "iu" if whole[0] != "string" else False
        if qid and not can:
            raise ValueError("qid=True: there is no column 'qid' of whole numbers")
        self._qid = bool(can) if qid is None else qid
        kept = {name} | ({"qid"} if self._qid else set())
        self.left_out = table.left_out(kept)
        self._notes = [] if self._label else [f"there is no column {name!r}: all labels are 0"]
        self._ends = Ends()

    def write(self, path: Path) -> list[str]:
        """Write the file."""
        import sparsestore.kernels.decimals  # noqa: F401 - before threads need it

        write_lines(path, self._suffix, self._table, b"", self._lines)
        _, features = self._ends.found()
        if features < self._table.n_features:
            n = self._table.n_features
            self._notes.append(f"features from number {features} on have no entry: read it with n_features={n}")
        return self._notes

    def _lines(self, block: Block) -> NDArray[np.uint8]:
        from sparsestore.kernels import decimals

        self._ends.see(block)
        x, first = block.x, block.position - len(block.x)
        qids = np.zeros(0, np.int64)
        if self._qid:
            qids = self._queries(self._sound(block.columns["qid"], "qid", first), first)
        values = decimals.decimals(x.data)
        return decimals.row_lines(self._heads(block, first), qids, x.indptr, x.indices, values, self._base)

    @staticmethod
    def _queries(qids: NDArray[Any], first: int) -> NDArray[np.int64]:
        """Query numbers, each of which a reader takes."""
        wrong = (qids < 0) | (qids >= _QIDS)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"row {first + at}: column 'qid' has {qids[at]}, expected 0 to {_QIDS - 1}, as svmlight is read: leave "
                "it out with qid=False (--no-qid)"
            )
        return qids.astype(np.int64, copy=False)

    def _heads(self, block: Block, first: int) -> Heads:
        """Labels of a block as text."""
        from sparsestore.kernels import decimals

        if self._label is None:
            return decimals.spelled(decimals.decimals(np.zeros(len(block.x), np.int64)))
        y = self._sound(block.columns[self._label], self._label, first)
        return self._lists(y, block, first) if self._many else decimals.spelled(decimals.decimals(y))

    def _lists(self, y: NDArray[Any], block: Block, first: int) -> Heads:
        """Lists of labels, such as 0,2."""
        wrong = ((y != 0) & (y != 1)).any(axis=1)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"row {first + at}: column {self._label!r} has {y[at].tolist()}, expected zeros and ones, a label "
                "each: give label=, a column with one value a row"
            )
        empty = ~y.any(axis=1) & (np.diff(block.x.indptr) == 0)
        if empty.any():
            raise ValueError(
                f"row {first + int(np.argmax(empty))} has no label and no entry: svmlight would have an empty line for "
                "it, which is no row"
            )
        rows, labels = np.nonzero(y)
        cuts = np.searchsorted(rows, np.arange(1, len(y)))
        texts = [",".join(map(str, part.tolist())).encode() for part in np.split(labels, cuts)]
        ends = np.append(0, np.cumsum([len(text) for text in texts], dtype=np.int64))
        return np.frombuffer(b"".join(texts), np.uint8), ends

    def _sound(self, values: NDArray[Any], name: str, first: int) -> NDArray[Any]:
        """A column's values, none of which is missing or no finite number."""
        plain, missing = np.ma.getdata(values), np.ma.getmaskarray(values)
        bad = missing if plain.dtype.kind != "f" else missing | ~np.isfinite(plain)
        if bad.any():
            at = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
            found = "no value" if missing[at].any() else plain[at]
            raise ValueError(f"row {first + at}: column {name!r} has {found}, and svmlight needs a finite number")
        return np.asarray(plain)
