"""Matrix Market: equal to scipy on real files, every corner decided, every bad file refused with its line."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.io import mmread, mmwrite

import sparsestore as ss
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

REAL = [
    "tenx/matrix.mtx.gz",
    "ginkgo_mtx/1138_bus.mtx",
    "ginkgo_mtx/nontrivial_mc64_example.mtx",
    "gunrock_mtx/chesapeake.mtx",
    "gensim/testcorpus.mm",
    "gensim/dtm_test.mm",
]


def opened(path, text: str, **options):
    path = path / "x.mtx"
    path.write_text(text, encoding="utf-8", newline="")
    return open_source(path, **options)


@pytest.mark.parametrize("name", REAL)
def test_equals_scipy(name):
    check_source(
        open_source(DATA / name, dtype="float64"), sparse.csr_array(mmread(DATA / name, spmatrix=False)).astype(float)
    )


def test_the_same_corpus_in_two_formats_is_the_same_matrix():
    matrix, _ = read(open_source(DATA / "gensim/testcorpus.svmlight"))
    check_source(open_source(DATA / "gensim/testcorpus.mm"), matrix)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["general", "symmetric", "skew-symmetric"]),
    st.sampled_from(["real", "integer", "pattern", "array"]),
)
def test_reads_what_scipy_writes(tmp_path_factory, seed, symmetry, field):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    x = np.where(rng.random((n, n)) < 0.3, rng.normal(size=(n, n)), 0)
    if field == "integer":
        x = rng.integers(-5, 5, (n, n))
    if field == "array":
        symmetry = "general"
    if symmetry == "symmetric":
        x = x + x.T
    elif symmetry == "skew-symmetric":
        x = x - x.T
        field = "real"
    if field == "pattern":
        x = (x != 0).astype(float)
    path = tmp_path_factory.mktemp("mtx") / "x.mtx"
    written = x if field == "array" else sparse.coo_array(x)
    mmwrite(path, written, symmetry=symmetry, field=None if field in ("array", "real") else field)
    check_source(open_source(path, dtype="float64"), mmread(path, spmatrix=False))


def test_an_upper_triangle_is_mirrored_as_well(tmp_path):
    text = "%%MatrixMarket matrix coordinate real symmetric\n3 3 2\n1 3 5\n2 2 1\n"
    check_source(opened(tmp_path, text), np.array([[0, 0, 5], [0, 1, 0], [5, 0, 0]], np.float32))


@pytest.mark.parametrize("kind", ["symmetric", "skew-symmetric"])
@pytest.mark.parametrize("both_at_once", [True, False])
def test_the_last_of_both_triangles_is_that_of_the_file(tmp_path, kind, both_at_once):
    """Wherever the file is cut into pieces."""
    sign = -1 if kind == "skew-symmetric" else 1
    between = "" if both_at_once else "% ...\n" * 100_000
    text = f"%%MatrixMarket matrix coordinate real {kind}\n2 2 2\n1 2 5\n{between}2 1 7\n"
    (tmp_path / "x.mtx").write_text(text)
    store = ss.convert(tmp_path / "x.mtx", tmp_path / "a.zarr", duplicates="last", max_bytes="24MiB", progress=False)
    np.testing.assert_array_equal(store[:].toarray(), [[0, sign * 7], [7, 0]])


def test_a_banner_in_lower_case_is_accepted():
    wanted = np.array([[1, 3, 0, 5, 0], [0, 2, 1, 0, 4], [2, 2, 0, 1, 0]], np.float32)
    check_source(open_source(DATA / "gensim/test_corpus_small.mm"), wanted)


def test_blanks_comments_and_crlf_are_skipped_everywhere(tmp_path):
    text = "%%MatrixMarket matrix coordinate integer general\r\n% c\r\n\r\n 2  3 2 \r\n% c\r\n1 3 7\r\n\r\n\t2 1 -8  "
    check_source(opened(tmp_path, text), np.array([[0, 0, 7], [-8, 0, 0]], np.float32))


def test_a_matrix_may_be_read_wider(tmp_path):
    text = "%%MatrixMarket matrix coordinate pattern general\n1 2 1\n1 2\n"
    check_source(opened(tmp_path, text, n_features=4), np.array([[0, 1, 0, 0]], np.float32))
    with pytest.raises(ValueError, match="has 2 features, expected at most n_features=1"):
        opened(tmp_path, text, n_features=1)


def test_duplicates_stay_for_the_caller_to_sum(tmp_path):
    text = "%%MatrixMarket matrix coordinate real general\n1 2 2\n1 2 5\n1 2 6\n"
    (part,) = opened(tmp_path, text).blocks(1 << 20)
    assert part.values.tolist() == [5, 6]


REAL_BAD = {
    "gensim/test_mmcorpus_corrupt.mm": ":6: expected row column value, found '2 1'",
    "gensim/test_mmcorpus_no_index.mm": ":24: the file ends after 22 of 28 entries that line 2 declares",
    "gensim/test_mmcorpus_no_index.mm.gz": ":24: the file ends after 22 of 28 entries that line 2 declares",
    "gensim/test_mmcorpus_no_index.mm.bz2": ":24: the file ends after 22 of 28 entries that line 2 declares",
    "gensim/test_mmcorpus_overflow.mm": ":2: declares 22134988630 entries, but the file of 332 bytes can hold 43",
    "gensim/test_corpus_ok.mm": ":12: more entries than the 9 that line 2 declares",
    "gensim/testcorpus.uci": ":1: expected the banner %%MatrixMarket matrix coordinate real general",
}


@pytest.mark.parametrize("name", REAL_BAD)
def test_refuses_bad_real_files(name):
    with pytest.raises(SourceError) as caught:
        read(open_source(DATA / name, format="matrix_market"))
    assert str(caught.value).startswith(f"{DATA / name}{REAL_BAD[name]}")


def test_a_header_beyond_a_compressed_file_is_found_at_its_end(tmp_path):
    path = tmp_path / "x.mtx.gz"
    path.write_bytes(gzip.compress((DATA / "gensim/test_mmcorpus_overflow.mm").read_bytes()))
    with pytest.raises(SourceError, match=r"x\.mtx\.gz:\d+: the file ends after \d+ of 22134988630 entries"):
        read(open_source(path))


GENERAL = "%%MatrixMarket matrix coordinate real general\n"
BAD = {
    "empty": ("", "1: the file ends before the size line"),
    "no_size_line": (GENERAL + "% c\n", "3: the file ends before the size line"),
    "banner": ("%%MatrixMarket tensor coordinate real general\n1 1 0\n", "1: expected the banner"),
    "layout": ("%%MatrixMarket matrix elsewhere real general\n1 1 0\n", "1: layout 'elsewhere', expected"),
    "complex": ("%%MatrixMarket matrix coordinate complex general\n1 1 0\n", "1: field 'complex' can not be stored"),
    "hermitian": ("%%MatrixMarket matrix coordinate real hermitian\n1 1 0\n", "1: symmetry 'hermitian' of coordinate"),
    "array_symmetric": ("%%MatrixMarket matrix array real symmetric\n1 1\n1\n", "1: symmetry 'symmetric' of array"),
    "size_line": (GENERAL + "3 3\n", "2: expected the size line, rows columns entries, found '3 3'"),
    "negative_size": (GENERAL + "3 -3 1\n", "2: expected the size line"),
    "huge_array": (
        "%%MatrixMarket matrix array real general\n999999999 9999999999\n",
        "2: 9999999989000000001 entries",
    ),
    "not_square": ("%%MatrixMarket matrix coordinate real symmetric\n2 3 0\n", "2: a symmetric matrix of 2 x 3"),
    "row_0": (GENERAL + "3 3 1\n0 1 1.0\n", "3: expected rows 1 to 3 and columns 1 to 3, found '0 1 1.0'"),
    "column_4": (GENERAL + "3 3 1\n1 4 1.0\n", "3: expected rows 1 to 3 and columns 1 to 3, found '1 4 1.0'"),
    "negative": (GENERAL + "3 3 1\n1 -1 1.0\n", "3: expected row column value, found '1 -1 1.0'"),
    "four_numbers": (GENERAL + "3 3 1\n1 1 1.0 2\n", "3: expected row column value, found '1 1 1.0 2'"),
    "value": (GENERAL + "3 3 1\n1 1 one\n", "3: the value is not a number that float64 can hold, found '1 1 one'"),
    "beyond_float32": (GENERAL + "3 3 2\n1 1 1.0\n% c\n1 2 1e300\n", "5: value 1e+300 is beyond float32"),
    "integer": (
        "%%MatrixMarket matrix coordinate integer general\n3 3 2\n1 1 1\n1 1 16777217\n",
        "4: value 16777217.0, expected a whole number that float32 holds exactly: give dtype='float64'",
    ),
    "broken_integer": ("%%MatrixMarket matrix coordinate integer general\n3 3 1\n1 1 1.5\n", "3: value 1.5, expected"),
    "skew_diagonal": (
        "%%MatrixMarket matrix coordinate real skew-symmetric\n3 3 2\n2 1 1\n1 1 1.5\n",
        "4: an entry on the diagonal of a skew-symmetric matrix",
    ),
    "pattern_with_values": (
        "%%MatrixMarket matrix coordinate pattern general\n3 3 1\n1 1 1\n",
        "3: expected row column,",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(tmp_path, case):
    text, message = BAD[case]
    with pytest.raises(SourceError) as caught:
        read(opened(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'x.mtx'}:{message}")


@pytest.mark.parametrize("name", ["x.mtx", "docword.x.txt"])
def test_a_sum_of_whole_numbers_that_would_be_rounded_is_refused(tmp_path, name):
    head = "%%MatrixMarket matrix coordinate integer general\n" if name == "x.mtx" else ""
    sizes = "3 3 3\n" if head else "3\n3\n3\n"
    (tmp_path / name).write_text(f"{head}{sizes}1 1 16777216\n2 2 5\n1 1 1\n")
    options = {"format": "uci"} if not head else {}
    with pytest.raises(ValueError, match="row 0, feature 0: the sum of its duplicates does not fit float32: give a w"):
        ss.convert(tmp_path / name, tmp_path / "s.zarr", **options)
    ss.convert(tmp_path / name, tmp_path / "s.zarr", dtype="float64", **options)
    assert ss.open(tmp_path / "s.zarr")[0].toarray().tolist() == [[16777217, 0, 0]]


def test_memory_stays_within_the_bound(tmp_path):
    max_bytes = 32 << 20
    n = 4_000_000
    (tmp_path / "small.mtx").write_text("%%MatrixMarket matrix coordinate pattern symmetric\n9 9 1\n2 1\n")
    with (tmp_path / "big.mtx").open("w") as file:
        file.write(f"%%MatrixMarket matrix coordinate pattern symmetric\n9 9 {n}\n" + "2 1\n" * n)
    peak = peak_of_reading(
        """
        import sys
        from sparsestore.sources.registry import open_source
        source, warm, max_bytes = open_source(sys.argv[1]), open_source(sys.argv[2]), int(sys.argv[3])
        """,
        tmp_path / "big.mtx",
        tmp_path / "small.mtx",
        max_bytes,
    )
    assert peak <= max_bytes + (16 << 20)
