"""Vowpal Wabbit's text: ``label importance 'tag|namespace:weight feature:value feature ...``.

Format: https://github.com/VowpalWabbit/vowpal_wabbit/wiki/Input-format
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsestore.csr import Rows, index_dtype, summed
from sparsestore.errors import SourceError
from sparsestore.parallel import mapped, n_cores
from sparsestore.sources import options
from sparsestore.sources.base import Block
from sparsestore.sources.categories import Categories
from sparsestore.sources.dictionary import BadNameError, Dictionary
from sparsestore.sources.file import shown
from sparsestore.sources.text import Piece, TextFile
from sparsestore.values import overflow

if TYPE_CHECKING:
    from sparsestore.kernels.vw import Examples

__all__ = ["VwSource"]

Array = NDArray[Any]
Ints = NDArray[np.int64]

_PIECE = 4 << 20
_LONGEST_LINE = 8 << 20
_ENTRY_BYTES = 96  # an entry of 4 bytes of text: its name, value, namespace and number, and what sorts them
_ENCODINGS = ("dictionary", "hash", "number")
_LONGEST_SPACE = 200


class VwSource:
    """Examples of Vowpal Wabbit, compressed or not.

    The file is read once, in pieces; all that `blocks` holds at a time takes at most `max_bytes` + 16 MiB (and a
    decompressor's window: `text.TextFile`), beside a dictionary of names. A line may have 8 MiB.

    A feature without a value is 1; one that stands twice in a line, in the same namespace, adds up. A namespace's
    weight multiplies its values. Labels are numbers; a line without one has nan. Labels of more than a number (costs,
    contextual bandits), and a base behind the importance, are refused.

    Parameters
    ----------
    path : Path
    encode : {"dictionary", "hash", "number"}
        How features get their numbers. Names are ``namespace^feature``, in the namespace without a name ``feature``. A
        dictionary counts them as they first come; "hash" hashes the name to `n_features`, with a sign (see
        `categories.Categories`; Vowpal Wabbit's own hash is another); "number": names are the numbers themselves,
        whatever the namespace.
    n_features : int, optional
        Of "hash", and for "number" more features than there are.
    zero_based : bool
        Whether numbers count from 0, or from 1.
    unknown : {"add", "ignore", "error"}
        What a name becomes that is none of the features given, as for `csv.CsvSource`.
    importance : bool
        Whether the importance of an example becomes the column "sample_weight", 1 where there is none. Otherwise one is
        an error.
    tag : bool
        Whether tags become the column "tag". Otherwise they are left out.
    dtype : float32 or float64
        Of values, labels and weights, which are read in float64 and rounded once.
    """

    unit = "bytes"
    sorted_rows = True
    n_rows: int | None = None

    def __init__(
        self,
        path: Path,
        *,
        encode: str = "dictionary",
        n_features: int | None = None,
        zero_based: bool = True,
        unknown: str = "add",
        importance: bool = False,
        tag: bool = False,
        dtype: DTypeLike = "float32",
    ) -> None:
        if encode not in _ENCODINGS:
            raise ValueError(f"encode={encode!r}, expected one of {', '.join(_ENCODINGS)}")
        self.name = str(path)
        self._file = TextFile(path)
        self.size: int | None = self._file.size
        self._dtype = options.text_dtype(dtype)
        self.dtype: np.dtype[Any] | None = self._dtype
        self._base = 0 if zero_based else 1
        self._importance, self._tag = importance, tag
        self.columns: dict[str, tuple[str, tuple[int, ...]]] = {"y": (self._dtype.name, ())}
        if importance:
            self.columns["sample_weight"] = self._dtype.name, ()
        if tag:
            self.columns["tag"] = "string", ()
        self.n_features: int | None = None if n_features is None else options.width(self.name, 0, n_features)
        self._categories: Categories | None = None
        if encode != "number":
            if not zero_based:
                raise ValueError(f"{self.name}: zero_based is for encode='number'")
            self._categories = Categories(self.name, [], encode=encode, n_features=n_features, unknown=unknown)
            self.hold = self._categories.hold
            if encode == "dictionary":
                if n_features is not None:
                    raise ValueError(
                        f"{self.name}: n_features={n_features} is for encode='hash' and 'number': a dictionary finds "
                        "out"
                    )
                self.adopt = self._adopt
        elif unknown != "add":
            raise ValueError(f"{self.name}: unknown={unknown!r} is for encode='dictionary'")
        self._options = {
            "encode": encode,
            "n_features": n_features,
            "zero_based": zero_based if encode == "number" else None,
            "unknown": unknown if encode == "dictionary" else None,
            "importance": importance,
            "tag": tag,
            "dtype": str(self._dtype),
        }
        self._spaces = Dictionary(f"{self.name}: namespaces", letters=(0, _LONGEST_SPACE))

    def _adopt(self, names: Sequence[str]) -> None:
        """Begin with the features of another store, which keep their numbers."""
        if self._categories is None:
            return
        self._spaces.add(dict.fromkeys(name.partition("^")[0] if "^" in name else "" for name in names))
        self._categories.prefixes[:] = [_prefix(space) for space in self._spaces.names()]
        self._categories.adopt(names)

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features that were read, where a dictionary numbers them."""
        names = self._categories.names() if self._categories is not None else None
        return None if names is None else list(names)

    def provenance(self) -> dict[str, Any]:
        """Path, size, time of change, and the options that say how the file was read."""
        facts = options.provenance(self._file.path, "vw", self._options)
        return facts if self._categories is None else {**facts, **self._categories.facts()}

    def blocks(self, max_bytes: int) -> Iterator[Block]:
        """Yield the rows in order."""
        from sparsestore.kernels import vw

        if self._categories is not None:
            self._categories.start()
        n_threads = n_cores()
        piece_bytes = min(_PIECE, max(4 * max_bytes // (_ENTRY_BYTES * (n_threads + 1)), 4096))
        pieces = self._file.pieces(piece_bytes, _LONGEST_LINE)

        def parsed(piece: Piece) -> tuple[Piece, Examples]:
            return piece, vw.examples(piece.text)

        with closing(mapped(parsed, pieces, n_threads)) as found:
            for piece, examples in found:
                if examples.status != vw.OK:
                    raise self._error(piece, examples)
                if len(examples.starts):
                    yield self._block(piece, examples)

    def _block(self, piece: Piece, found: Examples) -> Block:
        from sparsestore.kernels import bucket

        exact = found.values * found.scales[found.spaces] if (found.scales != 1).any() else found.values
        values, at = options.rounded(exact, self._dtype)
        if at is not None:
            raise self._wrong(piece, int(found.names[at, 0]), f"value {float(exact[at])!r} is beyond {self._dtype}")
        numbers, signs = self._numbers(piece, found)
        if signs is not None:
            values = values * signs.astype(values.dtype)
        indptr = found.indptr
        if numbers.min(initial=0) < 0:  # what is to be ignored
            kept = numbers >= 0
            numbers, values = numbers[kept], values[kept]
            indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        width = self.n_features
        if width is None:
            width = self._categories.width if self._categories is not None else int(numbers.max(initial=-1)) + 1
        indices, data = numbers.astype(index_dtype(width)), np.array(values)
        bucket.sort_in_rows(indptr, indices, bucket.as_bits(data))
        rows, bad = summed(Rows(indptr, indices, data, width))
        if bad is not None:
            row, feature = rows.place(bad)
            line = piece.line_at(int(found.starts[row]))
            raise SourceError(f"{self.name}:{line}: feature {feature}: {overflow(self._dtype)}")
        return Block(rows, self._columns(piece, found), piece.position)

    def _columns(self, piece: Piece, found: Examples) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        labels, at, wrong = options.rounded_labels(found.labels, self._dtype)
        if at is not None:
            raise self._wrong(piece, int(found.starts[at]), f"label {found.labels[at]:.17g} {wrong}")
        columns["y"] = labels
        weights, at = options.rounded(found.importance, self._dtype)
        if at is not None:
            raise self._wrong(
                piece, int(found.starts[at]), f"importance {float(found.importance[at])!r} is beyond {self._dtype}"
            )
        if self._importance:
            columns["sample_weight"] = weights
        elif (weights != 1).any():
            at = int(np.argmax(weights != 1))
            raise self._wrong(
                piece,
                int(found.starts[at]),
                f"importance {found.importance[at]:g}: give importance=True (--importance) to keep it as sample_weight",
            )
        if self._tag:
            payload = piece.text.tobytes()
            tags = np.empty(len(found.tags), object)
            for row, (start, stop) in enumerate(found.tags.tolist()):
                try:
                    tags[row] = payload[start:stop].decode()
                except UnicodeDecodeError:
                    raise self._wrong(piece, start, "the tag is no UTF-8 text") from None
            columns["tag"] = tags
        return columns

    def _numbers(self, piece: Piece, found: Examples) -> tuple[Ints, Array | None]:
        """Number of each entry's feature, and signs where they are hashed."""
        starts, stops = found.names[:, 0].copy(), found.names[:, 1].copy()
        if self._categories is None:
            return self._plain(piece, starts, stops), None
        spaces = found.space_names
        try:
            fields = self._spaces.codes(piece.text, spaces[:, 0].copy(), spaces[:, 1].copy(), 0)
        except BadNameError as error:
            raise self._wrong(piece, int(spaces[error.at, 0]), f"the name of the namespace {error.reason}") from None
        prefixes = self._categories.prefixes
        for space in self._spaces.names(len(prefixes)):
            if "^" in space:
                at = int(np.argmax(fields == len(prefixes)))
                raise self._wrong(piece, int(spaces[at, 0]), "the name of the namespace has a ^, which parts the two")
            prefixes.append(_prefix(space))
        of_entries = fields[found.spaces]
        plain = of_entries == (prefixes.index("") if "" in prefixes else -1)
        if plain.any() and (piece.text == ord("^")).any():
            self._refuse_hats(piece, starts[plain], stops[plain])
        try:
            return self._categories.codes(of_entries.astype(np.int32), piece.text, starts, stops)
        except BadNameError as error:
            raise self._wrong(piece, int(starts[error.at]), f"the name of the feature {error.reason}") from None

    def _refuse_hats(self, piece: Piece, starts: Ints, stops: Ints) -> None:
        """Features of the namespace without a name may not look like those of another."""
        hats = np.append(0, np.cumsum(piece.text == ord("^")))
        bad = hats[stops] > hats[starts]
        if bad.any():
            reason = "the name of the feature has a ^, which parts it from a namespace: give it one"
            raise self._wrong(piece, int(starts[np.argmax(bad)]), reason)

    def _plain(self, piece: Piece, starts: Ints, stops: Ints) -> Ints:
        """Names as numbers."""
        from sparsestore.kernels import naming

        numbers = np.empty(len(starts), np.int64)
        naming.decimals(piece.text, starts, stops, numbers)
        most = None if self.n_features is None else self.n_features + self._base
        wrong = (numbers < self._base) if most is None else (numbers < self._base) | (numbers >= most)
        if wrong.any():
            at = int(np.argmax(wrong))
            last = "" if most is None else f" to {most - 1}"
            raise self._wrong(
                piece,
                int(starts[at]),
                f"the name of a feature is no number, expected {self._base}{last or ' or more'}: for names give "
                "encode='dictionary' or 'hash'",
            )
        return numbers - self._base

    def _error(self, piece: Piece, found: Examples) -> SourceError:
        from sparsestore.kernels import vw

        if found.status == vw.MANY_NUMBERS:
            reason = "a third number, or more, before the first |: expected a label and an importance at most"
        elif found.status == vw.TWO_TAGS:
            reason = "a second tag, expected one at most: a word that begins with ' or ends at the first |"
        elif found.status == vw.EMPTY_NAME:
            reason = "a feature without a name"
        else:
            reason = "expected a finite number that float64 can hold"
        return self._wrong(piece, found.offset, reason)

    def _wrong(self, piece: Piece, offset: int, reason: str) -> SourceError:
        token = piece.text[offset : offset + 200].tobytes().split(b"\n")[0]
        token = token.split()[0] if token.split() else b""
        return SourceError(f"{self.name}:{piece.line_at(offset)}: {reason}, found {shown(token)}")


def _prefix(space: str) -> str:
    return f"{space}^" if space else ""
