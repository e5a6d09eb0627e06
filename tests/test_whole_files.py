"""Every good real file, whole: what a store has of it is what another reader finds, entry by entry.

Some files are too large or may not be copied into `tests/data`: they are read from ``shared/data`` beside the project.
"""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from sklearn.datasets import load_svmlight_file
from sklearn.feature_extraction import FeatureHasher

import sparsestore as ss

SHARED = Path(__file__).parents[2] / "shared" / "data"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not beside the project")


def check(
    path: Path,
    tmp_path: Path,
    expected: Any,
    columns: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
    **options: Any,
) -> ss.Store:
    """Convert in order and shuffled, and compare all values, dtypes aside, and columns."""
    options |= given or {}
    x = sp.csr_array(expected)
    x.sum_duplicates()
    store = ss.convert(path, tmp_path / "a.zarr", **options)
    shuffled = ss.convert(path, tmp_path / "b.zarr", shuffle=True, seed=3, **options)
    order = shuffled.column("row_id")[:]
    assert sorted(order.tolist()) == list(range(x.shape[0]))
    for found, rows in ((store, np.arange(x.shape[0])), (shuffled, order)):
        entries = found[:]
        wanted = x[rows]
        assert entries.shape == wanted.shape
        np.testing.assert_array_equal(entries.indptr, wanted.indptr)
        np.testing.assert_array_equal(entries.indices, wanted.indices)
        np.testing.assert_array_equal(entries.data, wanted.data)
        assert set(found.columns) - {"row_id"} == set(columns or {})
        for name, values in (columns or {}).items():
            np.testing.assert_array_equal(np.asarray(found.column(name)[:]), np.asarray(values)[rows])
    return store


SVMLIGHT: dict[str, dict[str, Any]] = {
    "agaricus/agaricus.txt.train": {},
    "agaricus/agaricus.txt.test": {},
    "a9a/a9a": {},
    "a9a/a9a.t": {"n_features": 123},
    "heart_scale/heart_scale": {},
    "lightgbm/rank.train": {},
    "lightgbm/rank.test": {},
    "hivemall/news20-small.binary.gz": {},
    "gensim/testcorpus.svmlight": {},
    "sklearn_svmlight/svmlight_classification.txt": {},
}


@pytest.mark.parametrize("name", SVMLIGHT)
def test_svmlight_is_what_scikit_learn_reads(name: str, tmp_path: Path) -> None:
    options = SVMLIGHT[name]
    x, y = load_svmlight_file(str(SHARED / name), zero_based=False, dtype=np.float32, **options)
    check(SHARED / name, tmp_path, x, {"y": y.astype(np.float32)}, format="svmlight", **options)


def test_svmlight_of_several_labels_is_what_scikit_learn_reads(tmp_path: Path) -> None:
    path = SHARED / "sklearn_svmlight/svmlight_multilabel.txt"
    x, labels = load_svmlight_file(str(path), zero_based=False, dtype=np.float32, multilabel=True)
    y = np.zeros((len(labels), 3), np.uint8)
    for row, found in enumerate(labels):
        y[row, np.array(found, int)] = 1
    check(path, tmp_path, x, {"y": y}, format="svmlight", multilabel=3)


MATRIX_MARKET = {
    "ginkgo_mtx/1138_bus.mtx": {},
    "ginkgo_mtx/ani4.mtx": {},
    "ginkgo_mtx/nontrivial_mc64_example.mtx": {},
    "gunrock_mtx/chesapeake.mtx": {},
    "gensim/testcorpus.mm": {},
    "gensim/dtm_test.mm": {},
    "tenx/matrix.mtx.gz": {},
}


@pytest.mark.parametrize("name", MATRIX_MARKET)
def test_matrix_market_is_what_scipy_reads(name: str, tmp_path: Path) -> None:
    check(SHARED / name, tmp_path, scipy.io.mmread(SHARED / name), dtype="float64")


@pytest.mark.parametrize("path", sorted((SHARED / "pecos_npz").glob("*.npz")), ids=lambda path: path.name)
def test_npz_is_what_scipy_reads(path: Path, tmp_path: Path) -> None:
    check(path, tmp_path, sp.load_npz(path))


def bags(name: str, entries: Callable[[list[str]], Any]) -> sp.csr_array:
    rows, features, counts = zip(*entries((SHARED / name).read_text().splitlines()), strict=True)
    return sp.coo_array((counts, (rows, features)), shape=(9, 12)).tocsr()


def test_bags_of_words_are_what_plain_python_reads(tmp_path: Path) -> None:
    def uci(lines: list[str]) -> Any:
        return ((int(r) - 1, int(f) - 1, int(n)) for r, f, n in map(str.split, lines[3:]))

    def lda_c(lines: list[str]) -> Any:
        pairs = ((r, *pair.split(":")) for r, line in enumerate(lines) for pair in line.split()[1:])
        return ((r, int(f), float(n)) for r, f, n in pairs)

    for format, name, read in (("uci", "gensim/testcorpus.uci", uci), ("lda_c", "gensim/testcorpus.blei", lda_c)):
        folder = tmp_path / format
        folder.mkdir()
        check(SHARED / name, folder, bags(name, read), format=format)


@pytest.mark.parametrize("name", ["small_train.txt", "small_test.txt"])
def test_libffm_is_what_plain_python_reads(name: str, tmp_path: Path) -> None:
    lines = [line.split() for line in (SHARED / "xlearn" / name).read_text().splitlines()]
    x = np.zeros((len(lines), 10_000))
    for row, (_, *entries) in enumerate(lines):
        for _, index, value in (entry.split(":") for entry in entries):
            x[row, int(index)] += float(value)
    y = np.array([label for label, *_ in lines], np.float32)
    check(SHARED / "xlearn" / name, tmp_path, x.astype(np.float32), {"y": y}, format="libffm", n_features=10_000)


@pytest.mark.parametrize("name", ["rcv1_small.dat", "rcv1_small_test.data", "0001.dat"])
def test_vowpal_wabbit_is_what_plain_python_reads(name: str, tmp_path: Path) -> None:
    names, labels, places = dict[str, int](), list[float](), dict[tuple[int, int], float]()
    for row, line in enumerate((SHARED / "vw" / name).read_text().splitlines()):
        head, _, rest = line.partition("|")
        space, *tokens = rest.split()
        labels.append(float(head))
        for token in tokens:
            feature, _, value = token.partition(":")
            at = row, names.setdefault(f"{space}^{feature}", len(names))
            places[at] = places.get(at, 0.0) + float(value or 1)
    rows, features = np.array(list(places)).T
    x = sp.coo_array((list(places.values()), (rows, features)), shape=(len(labels), len(names)))
    store = check(SHARED / "vw" / name, tmp_path, x, {"y": labels}, format="vw", dtype="float64")
    assert store.feature_names is not None
    assert store.feature_names.tolist() == list(names)


def test_a_dense_table_is_what_pandas_reads(tmp_path: Path) -> None:
    path = SHARED / "lightgbm/binary.train"
    table = pd.read_csv(path, sep="\t", header=None, float_precision="round_trip")
    weight = np.loadtxt(SHARED / "lightgbm/binary.train.weight")
    options: dict[str, Any] = {"format": "csv", "delimiter": "tab", "header": False, "label": 0, "dtype": "float64"}
    options["columns"] = {"sample_weight": weight}
    check(path, tmp_path, table.iloc[:, 1:].to_numpy(), {"y": table[0], "sample_weight": weight}, options)


def test_a_table_of_two_labels_is_what_pandas_reads(tmp_path: Path) -> None:
    path = SHARED / "fuxictr/train.csv"
    table = pd.read_csv(path, float_precision="round_trip")
    features = [name for name in table if name.startswith("numerical")]
    kept = ["search_id", *(name for name in table if name.startswith("categorical"))]
    columns = {"y": table.click, "conversion": table.conversion, **{name: table[name] for name in kept}}
    keep = ["conversion:float64", *(f"{name}:int64" for name in kept)]
    store = check(path, tmp_path, table[features].to_numpy(), columns, label="click", keep=keep, dtype="float64")
    assert store.feature_names is not None
    assert store.feature_names.tolist() == features


def criteo() -> tuple[Path, pd.DataFrame, list[str], list[str]]:
    path = SHARED / "criteo_sample/criteo_sample.txt"
    texts = {f"C{i}": str for i in range(1, 27)}
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={f"I{i}": "" for i in range(1, 14)})
    return path, table, [f"I{i}" for i in range(1, 14)], list(texts)


def test_categories_are_numbered_as_they_come(tmp_path: Path) -> None:
    path, table, numbers, categories = criteo()
    names, rows, features = {name: at for at, name in enumerate(numbers)}, list[int](), list[int]()
    for row, texts in enumerate(table[categories].itertuples(index=False)):
        for field, text in zip(categories, texts, strict=True):
            if text:
                rows.append(row)
                features.append(names.setdefault(f"{field}={text}", len(names)))
    ones = sp.coo_array((np.ones(len(rows)), (rows, features)), shape=(len(table), len(names)))
    dense = np.zeros(ones.shape)
    dense[:, : len(numbers)] = table[numbers].fillna(0)
    options: dict[str, Any] = {"format": "csv", "label": "label", "categorical": "C*", "missing": "zero"}
    store = check(path, tmp_path, ones + dense, {"y": table.label}, **options, dtype="float64")
    assert store.feature_names is not None
    assert store.feature_names.tolist() == list(names)


def test_categories_are_hashed_as_by_scikit_learn(tmp_path: Path) -> None:
    path, table, numbers, categories = criteo()
    width = 1000
    hasher = FeatureHasher(width - len(numbers), input_type="string", dtype=np.float64)
    tokens = [
        [f"{field}={text}" for field, text in row.items() if text] for row in table[categories].to_dict("records")
    ]
    x = sp.hstack([sp.csr_array(table[numbers].fillna(0).to_numpy()), hasher.transform(tokens)]).tocsr()
    options: dict[str, Any] = {"format": "csv", "label": "label", "categorical": "C*", "missing": "zero"}
    options |= {"encode": "hash", "n_features": width, "dtype": "float64"}
    check(path, tmp_path, x, {"y": table.label}, **options)


def test_triples_of_texts_are_what_pandas_reads(tmp_path: Path) -> None:
    path = SHARED / "ml100k/ml-100k.inter"
    table = pd.read_csv(path, sep="\t", dtype={"user_id:token": str, "item_id:token": str})
    users, user_names = pd.factorize(table["user_id:token"])
    items, item_names = pd.factorize(table["item_id:token"])
    x = sp.coo_array((table["rating:float"], (users, items))).tocsr()
    options: dict[str, Any] = {"format": "csv", "delimiter": "tab", "value": "rating:float"}
    options |= {"row": "user_id:token:string", "feature": "item_id:token:string"}
    store = ss.convert(path, tmp_path / "a.zarr", **options)
    assert (store[:] != x).nnz == 0
    assert store.feature_names is not None
    assert store.feature_names.tolist() == item_names.tolist()
    (ids,) = store.columns
    assert store.column(ids)[:].tolist() == user_names.tolist()


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_compressed_text_is_what_it_was_made_of(suffix: str, tmp_path: Path) -> None:
    text = (SHARED / "a9a/a9a").read_bytes()
    path = tmp_path / f"a9a.svm{suffix}"
    path.write_bytes(gzip.compress(text) if suffix == ".gz" else bz2.compress(text))
    x, y = load_svmlight_file(str(SHARED / "a9a/a9a"), dtype=np.float32)
    check(path, tmp_path, x, {"y": y.astype(np.float32)})
