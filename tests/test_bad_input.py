"""Bad files are one error that says where and why and leave nothing; good ones of every source can be shuffled."""

import bz2
import gzip
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

import sparsestore as ss

DATA = Path(__file__).parent / "data"

BAD: dict[str, tuple[str | None, str]] = {
    "gensim/test_mmcorpus_corrupt.mm": (None, ":6: expected row column value, found '2 1'"),
    "gensim/test_mmcorpus_no_index.mm": (None, ":24: the file ends after 22 of 28 entries"),
    "gensim/test_mmcorpus_no_index.mm.gz": (None, ":24: the file ends after 22 of 28 entries"),
    "gensim/test_mmcorpus_no_index.mm.bz2": (None, ":24: the file ends after 22 of 28 entries"),
    "gensim/test_mmcorpus_overflow.mm": (None, ":2: declares 22134988630 entries, but the file of 332 bytes"),
    "gensim/test_corpus_ok.mm": (None, ":12: more entries than the 9 that line 2 declares"),
    "gensim/testcorpus.txt": (None, ": the suffix '.txt' tells no format"),
    "sklearn_svmlight/svmlight_invalid.txt": ("svmlight", ":1: the label is not a finite number, found 'python'"),
    "sklearn_svmlight/svmlight_invalid_order.txt": ("svmlight", ":1: indices not ascending"),
    "sklearn_svmlight/svmlight_multilabel.txt": ("svmlight", ":2: the label is not a finite number, found '1,0'"),
    "gensim/testcorpus.mm": ("svmlight", ":1: the label is not a finite number, found '%%MatrixMarket'"),
    "gensim/testcorpus.svmlight": ("matrix_market", ":1: "),
}


def failed(path: Path, dst: Path, message: str, **options: Any) -> None:
    """Converting must fail in these words, and the folder of the destination must stay empty."""
    with pytest.raises(ValueError, match="(?s)" + re.escape(str(path)) + ".*" + re.escape(message)):
        ss.convert(path, dst, **options)
    assert list(dst.parent.iterdir()) == []


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_error_and_leaves_nothing(tmp_path: Path, name: str, shuffle: bool) -> None:
    format, message = BAD[name]
    failed(DATA / name, tmp_path / "s.zarr", message, format=format, shuffle=shuffle)


@pytest.mark.parametrize("name", ["gensim/test_mmcorpus_corrupt.mm", "gensim/test_mmcorpus_no_index.mm.gz"])
def test_a_bad_file_leaves_the_store_that_it_was_to_be_appended_to(tmp_path: Path, name: str) -> None:
    from sparsestore.convert import append_source

    store = ss.convert(DATA / "gensim/testcorpus.mm", tmp_path / "s.zarr")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(name)):
        append_source(DATA / name, tmp_path / "s.zarr")
    assert sorted(tmp_path.rglob("*")) == before
    assert ss.open(tmp_path / "s.zarr").version == store.version


def test_a_header_that_lies_in_a_compressed_file_is_found_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "overflow.mm.gz"
    path.write_bytes(gzip.compress((DATA / "gensim/test_mmcorpus_overflow.mm").read_bytes()))
    (tmp_path / "out").mkdir()
    failed(path, tmp_path / "out" / "s.zarr", "12 of 22134988630 entries", max_bytes="64MB")


def test_a_table_given_as_svmlight_is_an_error_at_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("1\t0.869\t-0.635\n0\t0.907\t0.329\n")
    (tmp_path / "out").mkdir()
    failed(path, tmp_path / "out" / "s.zarr", ":1: expected index:value", format="svmlight")


def test_the_command_line_says_the_same_in_one_line(tmp_path: Path) -> None:
    bad = DATA / "gensim/test_mmcorpus_corrupt.mm"
    command = [sys.executable, "-m", "sparsestore", "convert", str(bad), str(tmp_path / "s.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == f"error: {bad}:6: expected row column value, found '2 1'"
    assert list(tmp_path.iterdir()) == []


def test_the_banner_of_matrix_market_may_be_in_lower_case(tmp_path: Path) -> None:
    store = ss.convert(DATA / "gensim/test_corpus_small.mm", tmp_path / "s.zarr")
    assert (store.shape, store.nnz) == ((3, 5), 9)


RNG = np.random.default_rng(0)
X = sp.random_array((300, 40), density=0.2, rng=RNG, format="csr", dtype=np.float32)
Y = RNG.integers(0, 2, 300).astype(np.float32)
WEIGHT = RNG.random(300).astype(np.float32)


def svmlight(folder: Path, compress: Callable[[bytes], bytes], suffix: str) -> Path:
    dump_svmlight_file(X, Y, str(folder / "x.svm"), zero_based=False)
    path = folder / f"x.svm{suffix}"
    path.write_bytes(compress((folder / "x.svm").read_bytes()))
    return path


def npz(folder: Path, matrix: Any, compressed: bool) -> Path:
    sp.save_npz(folder / "x.npz", matrix, compressed=compressed)
    return folder / "x.npz"


def npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X.toarray())
    return folder / "x.npy"


def mtx(folder: Path) -> Path:
    coo = X.tocoo()
    order = RNG.permutation(coo.nnz)
    shuffled = sp.coo_array((coo.data[order], (coo.row[order], coo.col[order])), shape=X.shape)
    scipy.io.mmwrite(folder / "x.mtx", shuffled)
    return folder / "x.mtx"


SOURCES: dict[str, Callable[[Path], Any]] = {
    "csr": lambda _: X,
    "csc": lambda _: sp.csc_matrix(X),
    "coo": lambda _: X.tocoo(),
    "bsr": lambda _: X.tobsr(),
    "dense": lambda _: X.toarray(),
    "svmlight": lambda folder: svmlight(folder, bytes, ""),
    "svmlight.gz": lambda folder: svmlight(folder, gzip.compress, ".gz"),
    "svmlight.bz2": lambda folder: svmlight(folder, bz2.compress, ".bz2"),
    "npz stored": lambda folder: npz(folder, X, False),
    "npz deflated": lambda folder: npz(folder, sp.csc_array(X), True),
    "npy": npy,
    "matrix market": mtx,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_can_be_shuffled_and_columns_travel_with_their_rows(tmp_path: Path, name: str) -> None:
    columns = {"sample_weight": WEIGHT} if name.startswith("svmlight") else {"sample_weight": WEIGHT, "y": Y}
    options = {"n_features": 40} if name.startswith("svmlight") else {}
    store = ss.convert(
        SOURCES[name](tmp_path),
        tmp_path / "s.zarr",
        columns=columns,
        shuffle=True,
        seed=5,
        max_bytes="32MiB",
        **options,
    )
    ids = store.column("row_id")[:]
    assert sorted(ids) == list(range(300))
    assert not np.array_equal(ids, np.arange(300))
    assert np.allclose(store[:].toarray(), X.toarray()[ids], rtol=1e-6)
    assert np.array_equal(store.column("y")[:], Y[ids])
    assert np.array_equal(store.column("sample_weight")[:], WEIGHT[ids])
    assert store.verify() == []


def test_files_equal_what_scikit_learn_reads(tmp_path: Path) -> None:
    store = ss.convert(DATA / "agaricus.txt.train.gz", tmp_path / "s.zarr", format="svmlight")
    x, y = load_svmlight_file(str(DATA / "agaricus.txt.train.gz"), dtype=np.float32)
    assert (store[:] != x).nnz == 0
    assert np.array_equal(store.column("y")[:], y)
