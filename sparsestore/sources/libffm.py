"""libffm text: ``label field:index:value ...``, a row a line.

Format: Y. Juan, "libffm", README, 2017. It reads as svmlight, with a field before each index.
"""

from __future__ import annotations

from pathlib import Path

from numpy.typing import DTypeLike

from sparsestore.sources.svmlight import SvmlightSource

__all__ = ["LibffmSource"]


class LibffmSource(SvmlightSource):
    """Rows of a libffm file, compressed or not; the label is column "y", fields are read and not kept.

    An index is a feature, whatever its field. One that stands in a row with several fields, as where features of all
    fields are hashed together, has the sum of its values there, as `FeatureHasher` of scikit-learn gives it. Memory,
    limits and errors are those of `SvmlightSource`.

    Parameters
    ----------
    path : Path
    n_features : int, optional
        Width of the matrix; a higher index is an error. Without it the width is what the last block says.
    zero_based : bool
        Whether the first feature is called 0, as in libffm's own examples. False: index 0 is an error.
    dtype : float32 or float64
        Of values and labels.
    sort : bool
        Whether rows with indices out of order, as they stand in the order of their fields, are sorted, and those of one
        index summed; else both are an error.
    """

    format = "libffm"
    _entry = "field:index:value"
    _fields = True
    _summed = True

    def __init__(
        self,
        path: Path,
        *,
        n_features: int | None = None,
        zero_based: bool = True,
        dtype: DTypeLike = "float32",
        sort: bool = True,
    ) -> None:
        super().__init__(path, n_features=n_features, zero_based=zero_based, dtype=dtype, qid=False, sort=sort)
        self._qid = 0  # there is none to be skipped
        self._options = {"n_features": n_features, "zero_based": zero_based, "dtype": str(self.dtype), "sort": sort}
