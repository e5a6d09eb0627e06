"""svmlight: equal to scikit-learn on real files, every corner decided, every bad file refused with its line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma

import numpy as np
import pytest
import zstandard
from check_source import DATA, assert_same, check_source, peak_of_reading, read
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

import sparsestore as ss
from sparsestore.convert import append_source
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

REAL = [
    "agaricus.txt.train.gz",
    "agaricus.txt.test.gz",
    "a9a.t.gz",
    "heart_scale/heart_scale",
    "lightgbm/rank_head.train",
    "hivemall/news20-small.binary.gz",
    "gensim/testcorpus.svmlight",
    "sklearn_svmlight/svmlight_classification.txt",
]


def opened(path, text: bytes | str, **options):
    path = path / "x.svm"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(path, **options)


def error_of(path, text: bytes | str, **options) -> str:
    with pytest.raises(SourceError) as caught:
        read(opened(path, text, **options))
    assert str(caught.value).startswith(f"{path / 'x.svm'}:")
    return str(caught.value).removeprefix(f"{path / 'x.svm'}:")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_scikit_learn(name, dtype):
    x, y = load_svmlight_file(str(DATA / name), zero_based=False, dtype=dtype)
    source = open_source(DATA / name, format="svmlight", dtype=dtype)
    check_source(source, x, {"y": y.astype(dtype)})


def test_reads_the_widths_that_train_and_test_files_have():
    assert read(open_source(DATA / "a9a.gz", format="svmlight"))[0].shape == (32561, 123)
    assert read(open_source(DATA / "a9a.t.gz", format="svmlight"))[0].shape == (16281, 122)
    assert read(open_source(DATA / "a9a.t.gz", format="svmlight", n_features=123))[0].shape == (16281, 123)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([2_000, 20_000, 1 << 24]))
def test_reads_what_scikit_learn_writes(tmp_path_factory, seed, zero_based, max_bytes):
    rng = np.random.default_rng(seed)
    x = sparse.random_array((int(rng.integers(1, 300)), 50), density=0.1, rng=rng, format="csr")
    x.data *= 10.0 ** rng.integers(-20, 20, x.nnz)
    y = rng.normal(size=x.shape[0])
    path = tmp_path_factory.mktemp("svm") / "x.svm"
    dump_svmlight_file(x, y, str(path), zero_based=zero_based)
    found, columns = read(open_source(path, zero_based=zero_based, n_features=50, dtype="float64"), max_bytes)
    wanted, y = load_svmlight_file(str(path), zero_based=zero_based, n_features=50)
    assert_same(found, wanted)
    np.testing.assert_array_equal(columns["y"], y)


CORNERS = {
    "blank_lines_and_comments": ("\n# c 1:2\n1 1:2 # 3:4\n  \n0 2:5#x\n", [[2, 0], [0, 5]]),
    "crlf": ("1 1:2\r\n\r\n0 2:5\r\n", [[2, 0], [0, 5]]),
    "tabs_and_leading_blanks": (" 1\t1:2  2:3 \n", [[2, 3]]),
    "no_newline_at_the_end": ("1 1:2\n0 2:5", [[2, 0], [0, 5]]),
    "rows_without_entries": ("1\n0 2:5\n1 # none\n", [[0, 0], [0, 5], [0, 0]]),
    "signs_and_exponents": ("+1 1:-2.5e1 2:+.5\n", [[-25, 0.5]]),
    "nan_and_inf": ("1 1:nan 2:-inf 3:Infinity\n", [[np.nan, -np.inf, np.inf]]),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_reads(tmp_path, corner):
    text, wanted = CORNERS[corner]
    check_source(opened(tmp_path, text), np.array(wanted, np.float32))


def test_explicit_zeros_stay_entries(tmp_path):
    matrix, _ = read(opened(tmp_path, "1 1:0 3:-0.0\n"))
    assert matrix.nnz == 2
    assert np.signbit(matrix.data).tolist() == [False, True]


def test_indices_beyond_int32_are_int64(tmp_path):
    for part in opened(tmp_path, "1 7:1\n0 3000000000:2\n").blocks(1 << 20):
        assert part.x.indices.dtype == np.int64
        assert part.x.indices.tolist() == [6, 2999999999]
        assert part.x.n_features == 3_000_000_000


def test_width_grows_where_it_is_not_given(tmp_path):
    source = opened(tmp_path, "".join(f"0 {i}:1\n" for i in range(1, 5000)))
    widths = [part.x.n_features for part in source.blocks(1000)]
    assert widths == sorted(widths)
    assert len(set(widths)) > 1
    assert widths[-1] == 4999


BAD = {
    "label": ("python 2:2\n", {}, "1: the label is not a finite number, found 'python'"),
    "nan_label": ("1 1:1\nnan 2:2\n", {}, "2: the label is not a finite number, found 'nan'"),
    "several_labels": ("1 1:1\n1,0 2:2\n", {}, "2: the label is not a finite number, found '1,0': give multilabel="),
    "no_colon": ("1\t0.869\t-0.6\n", {}, "1: expected index:value with a whole index, found '0.869': is this a table"),
    "no_index": ("1 1:1 :5\n", {}, "1: expected index:value with a whole index, found ':5'"),
    "negative_index": ("1 -1:5\n", {}, "1: expected index:value with a whole index, found '-1:5'"),
    "libffm": ("1 0:5:0.3\n", {}, "1: expected index:value, found '0:5:0.3': field:index:value is another format"),
    "value": (
        "1 1:1\n\n1 1:abc\n",
        {},
        "3: the value after the colon is not a number that float64 can hold, found 'abc'",
    ),
    "no_value": ("1 1: 2:1\n", {}, "1: the value after the colon is not a number that float64 can hold, found ''"),
    "beyond_float64": ("1 1:1e400\n", {}, "1: the value after the colon is not a number that float64 can hold"),
    "beyond_float32": ("1 1:1\n0\n0 1:1e300\n", {}, "3: value 1e+300 is beyond float32: give dtype='float64'"),
    "label_beyond_float32": ("1 1:1\n1e300 1:1\n", {}, "2: label 1e+300 is beyond float32: give dtype='float64'"),
    "zero": ("1 1:1\n1 0:1\n", {}, "2: index 0, expected 1 or more, found '0:1': give zero_based=True"),
    "too_high": ("1 4:1\n", {"n_features": 3}, "1: index too high, expected at most 3 (n_features=3), found '4:1'"),
    "too_high_from_0": (
        "1 3:1\n",
        {"n_features": 3, "zero_based": True},
        "1: index too high, expected at most 2 (n_features=3), found '3:1'",
    ),
    "beyond_int64": ("1 99999999999999999999:1\n", {}, "1: an index of more than 18 digits"),
    "order": ("1 1:1\n1 5:1 2:1\n", {}, "2: indices not ascending, found '2:1' after a higher one: give sort=True"),
    "twice": ("1 1:1\n1 5:1 5:2\n", {}, "2: an index stands twice in the row, expected once, found '5:2' again"),
    "twice_sorted": ("0 1:1\n1 5:1 2:1 5:2\n", {"sort": True}, "2: index 5 stands twice in the row, expected once"),
    "qid": ("1 qid:x 1:1\n", {"qid": True}, "1: expected qid: and a whole number, found 'qid:x'"),
    "qid_late": ("1 1:1\n1 qid:1 1:1\n", {}, "2: found 'qid:1' but the first row has no qid"),
    "qid_missing": ("1 qid:1 1:1\n1 1:1\n", {}, "2: the row has no qid"),
    "no_entries": (
        "1\n2\n3\n",
        {},
        " none of the 3 rows has an entry, expected label index:value ...: check the format",
    ),
    "no_rows": ("# nothing\n", {}, " there are no rows, expected label index:value"),
    "unknown_label": ("0,2 1:1\n", {"multilabel": 2}, "1: label 2, expected a whole number from 0 to 1"),
    "broken_label": ("0,2.5 1:1\n", {"multilabel": 3}, "1: label 2.5, expected a whole number from 0 to 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(tmp_path, case):
    text, options, message = BAD[case]
    assert error_of(tmp_path, text, **options).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sklearn_svmlight/svmlight_invalid.txt", ":1: the label is not a finite number, found 'python'"),
        ("sklearn_svmlight/svmlight_invalid_order.txt", ":1: indices not ascending"),
        ("sklearn_svmlight/svmlight_multilabel.txt", ":2: the label is not a finite number, found '1,0'"),
        ("xlearn/small_head.txt", ":1: expected index:value, found '0:0:0.3651'"),
        ("lightgbm/binary_head.train", ":1: expected index:value with a whole index, found '0.869'"),
        ("lightgbm/binary_head.train.weight", ": none of the 100 rows has an entry"),
        ("lightgbm/rank.test.query", ": none of the 50 rows has an entry"),
        ("tenx/matrix.mtx.gz", ":1: the label is not a finite number, found '%%MatrixMarket'"),
        ("pecos_npz/X.npz", ":1: the label is not a finite number"),
    ],
)
def test_refuses_real_files_that_are_bad_or_another_format(name, message):
    with pytest.raises(SourceError) as caught:
        read(open_source(DATA / name, format="svmlight"))
    assert str(caught.value).startswith(f"{DATA / name}{message}")


def test_a_late_error_names_its_line(tmp_path):
    text = "".join(f"0 {i % 7 + 1}:1\n" for i in range(50_000)) + "0 1:x\n"
    source = opened(tmp_path, text)
    for max_bytes in (10_000, 1 << 28):
        with pytest.raises(SourceError, match=r"x\.svm:50001: the value"):
            read(source, max_bytes)


def test_rows_are_sorted_when_asked(tmp_path):
    check_source(
        opened(tmp_path, "1 5:1 2:2 3:3\n0 1:1 4:4\n1\n0 3:5 1:6\n", sort=True),
        np.array([[0, 2, 3, 0, 1], [1, 0, 0, 4, 0], [0, 0, 0, 0, 0], [6, 0, 5, 0, 0]], np.float32),
        {"y": np.array([1, 0, 1, 0], np.float32)},
    )
    check_source(
        open_source(DATA / "sklearn_svmlight/svmlight_invalid_order.txt", format="svmlight", sort=True),
        np.array([[0, -5.2, 0, 0, 2.5] + [0] * 9 + [1.5]], np.float32),
    )


def test_qid_is_a_column(tmp_path):
    text = "1 qid:7 1:1\n0 qid:7 2:1 # c\n2 qid:9007199254740993\n"
    matrix = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    for option in (None, True):
        source = opened(tmp_path, text, qid=option)
        assert source.columns["qid"] == ("int64", ())
        check_source(source, matrix, {"qid": np.array([7, 7, 9007199254740993])})
    skipped = opened(tmp_path, text, qid=False)
    assert list(skipped.columns) == ["y"]
    check_source(skipped, matrix)


@pytest.mark.parametrize("first", [True, 2], ids=["all", "number"])
def test_other_labels_than_those_of_the_store_are_not_appended(tmp_path, first):
    """Where the columns of y would be others, though there are as many."""
    for name, labels in (("a", "0,1"), ("b", "0,7"), ("c", "1,0")):
        (tmp_path / f"{name}.svm").write_text(f"{labels} 1:1\n")
    ss.convert(tmp_path / "a.svm", tmp_path / "a.zarr", multilabel=first)
    message = r"b\.svm: number 1 of column 'y' stands for '7\.0', in .*a\.zarr for '1(\.0)?': give both the same"
    with pytest.raises(ValueError, match=message):
        append_source(tmp_path / "b.svm", tmp_path / "a.zarr", multilabel=True)
    append_source(tmp_path / "c.svm", tmp_path / "a.zarr", multilabel=True)
    append_source(tmp_path / "c.svm", tmp_path / "a.zarr", multilabel=2)
    with ss.open(tmp_path / "a.zarr") as store:
        assert store.column("y")[:].tolist() == [[1, 1]] * 3


def test_multilabel_is_a_matrix_of_zeros_and_ones():
    wanted = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]], np.uint8)
    path = DATA / "sklearn_svmlight/svmlight_multilabel.txt"
    x, labels = load_svmlight_file(str(path), zero_based=False, multilabel=True)
    assert labels == [(0.0, 1.0), (2.0,), (), (1.0, 2.0)]
    for option in (True, 3):
        source = open_source(path, format="svmlight", multilabel=option)
        assert source.columns["y"] == ("uint8", (3,))
        check_source(source, x.astype("float32"), {"y": wanted})
    assert open_source(path, format="svmlight", multilabel=True).provenance()["labels"] == [0, 1, 2]
    wide = read(open_source(path, format="svmlight", multilabel=5))[1]["y"]
    np.testing.assert_array_equal(wide, np.pad(wanted, ((0, 0), (0, 2))))


@pytest.mark.parametrize("text", ["", " 1:1\n 2:1\n", "# nothing\n"])
def test_rows_without_any_label_are_no_matrix_of_labels(tmp_path, text):
    message = r"no row has a label, expected at least one for multilabel=True: give their number, multilabel=k"
    with pytest.raises(SourceError, match=message):
        opened(tmp_path, text, multilabel=True, n_features=3)
    if text.startswith(" "):
        source = opened(tmp_path, text, multilabel=2, n_features=3)
        assert read(source)[1]["y"].tolist() == [[0, 0], [0, 0]]


def test_wide_multilabels_come_in_small_blocks(tmp_path):
    source = opened(tmp_path, "1,2 1:1\n" * 500, multilabel=1000)
    sizes = [part.columns["y"].nbytes for part in source.blocks(40_000)]
    assert max(sizes) <= 10_000
    assert sum(sizes) == 500_000


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files_are_read_in_parts_and_their_errors_name_them(tmp_path, suffix):
    text = b"".join(b"%d %d:1\n" % (i % 2, i % 90 + 1) for i in range(20_000))
    packed = tmp_path / f"x.svm{suffix}"
    packed.write_bytes(PACK[suffix](text[:70_000]) + PACK[suffix](text[70_000:]))  # two members are one file
    x, y = load_svmlight_file(io.BytesIO(text), zero_based=False, dtype="float32")
    source = open_source(packed)
    assert source.size == packed.stat().st_size
    check_source(source, x, {"y": y})
    packed.write_bytes(PACK[suffix](text + b"1 1:x\n"))
    with pytest.raises(SourceError, match=rf"x\.svm{suffix}:20001: the value"):
        read(open_source(packed))


@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_that_was_cut_is_refused(tmp_path, suffix):
    text = np.random.default_rng(0).integers(48, 58, 200_000, dtype=np.uint8).tobytes()
    text = b"".join(b"1 1:" + text[i : i + 15] + b"\n" for i in range(0, len(text), 15))
    whole = PACK[suffix](text)
    packed = tmp_path / f"x.svm{suffix}"
    for cut in (0, 3, len(whole) // 2, len(whole) - 5, len(whole) - 1):
        packed.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=rf"x\.svm{suffix}: cut short: the file ends at byte {cut}"):
            read(open_source(packed))
    packed.write_bytes(b"no compressed data")
    with pytest.raises(SourceError, match=rf"x\.svm{suffix}: damaged {suffix} data"):
        read(open_source(packed))
    packed.write_bytes(whole[:2000] + bytes(100) + whole[2100:])
    with pytest.raises(
        SourceError, match=rf"x\.svm{suffix}:"
    ):  # the decoder's checksum or the parser, whoever is first
        read(open_source(packed))


@pytest.mark.parametrize("behind", [b"@", lzma.compress(b"", lzma.FORMAT_ALONE)])
def test_what_stands_behind_xz_data_is_xz_or_zeros_not_the_older_format_without_a_checksum(tmp_path, behind):
    packed = tmp_path / "x.svm.xz"
    packed.write_bytes(lzma.compress(b"1 1:1\n") + behind + bytes(26))
    with pytest.raises(SourceError, match=r"x\.svm\.xz: damaged \.xz data"):
        read(open_source(packed))


def test_a_line_longer_than_a_piece_is_one_row(tmp_path):
    n = 60_000
    row = " ".join(f"{i}:1" for i in range(1, n + 1))
    source = opened(tmp_path, f"1 1:1\n0 {row}\n1 2:1\n")
    wanted = sparse.csr_array(np.vstack([np.eye(1, n), np.ones((1, n)), np.eye(1, n, 1)]).astype(np.float32))
    check_source(source, wanted)


def test_a_whole_label_that_would_become_another_is_an_error(tmp_path):
    text = "0.1 1:1\n\n16777217 1:1\n"
    with pytest.raises(
        SourceError, match=r"x\.svm:3: label 16777217.0 is a whole number that float32 lacks: give dtype"
    ):
        read(opened(tmp_path, text))
    (block,) = opened(tmp_path, text, dtype="float64").blocks(1 << 20)
    assert block.columns["y"].tolist() == [0.1, 16777217.0]


def test_a_line_beyond_the_limit_is_an_error(tmp_path):
    source = opened(tmp_path, "1 1:1\n" + "x" * (3 << 20))
    with pytest.raises(SourceError, match=r"x\.svm:2: the line has at least \d+ bytes, expected at most 1048576"):
        read(source, 1 << 20)


def test_an_empty_file_is_a_matrix_of_no_rows_where_its_width_is_given(tmp_path):
    check_source(opened(tmp_path, "", n_features=3), np.zeros((0, 3), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features": 0}, "n_features=0, expected at least 1"),
        ({"n_features": "9"}, "n_features is '9', expected an integer"),
        ({"n_features": 9.5}, "n_features is 9.5, expected an integer"),
        ({"dtype": "flaot"}, "dtype is 'flaot': data type 'flaot' not understood"),
        ({"dtype": "int32"}, "dtype=int32 for text, expected float32 or float64"),
        ({"multilabel": 0}, "multilabel=0, expected a number of labels from 1"),
        ({"multilabel": "all"}, "multilabel='all', expected a number of labels from 1 to 65536, or True"),
        ({"multilabel": -1}, "multilabel=-1, expected a number of labels"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "1 1:1\n", **options)


@pytest.mark.parametrize("shape", ["long_rows", "short_rows", "zst_bomb"])
def test_memory_stays_within_the_bound(tmp_path, shape):
    max_bytes = 32 << 20
    path = tmp_path / "big.svm"
    line = {"long_rows": b"1 " + b" ".join(b"%d:1" % i for i in range(1, 2000)) + b"\n"}.get(shape, b"1\n")
    text = line * ((32 << 20) // len(line)) + b"1 1:1\n"
    if shape == "zst_bomb":
        path = tmp_path / "big.svm.zst"
        text = zstandard.ZstdCompressor().compress(text * 3)
    path.write_bytes(text)
    (tmp_path / "small.svm").write_bytes(b"1 1:1\n")
    (tmp_path / "small.svm.zst").write_bytes(zstandard.ZstdCompressor().compress(b"1 1:1\n"))
    peak = peak_of_reading(
        """
        import sys
        from sparsestore.sources.registry import open_source
        source, warm, max_bytes = open_source(sys.argv[1]), open_source(sys.argv[2]), int(sys.argv[3])
        """,
        path,
        path.with_name(path.name.replace("big", "small")),
        max_bytes,
    )
    assert peak <= max_bytes + (16 << 20) + ((64 << 20) if shape == "zst_bomb" else 0)
