"""The right source for a path or an object; formats are never guessed from content."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from check_source import DATA, read

import sparsestore as ss
from sparsestore.preview import preview
from sparsestore.sources.registry import FORMATS, open_source


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("x.svm", "SvmlightSource"),
        ("x.svmlight", "SvmlightSource"),
        ("X.LIBSVM", "SvmlightSource"),
        ("x.svm.gz", "SvmlightSource"),
        ("x.mtx", "MatrixMarketSource"),
        ("x.mm", "MatrixMarketSource"),
    ],
)
def test_the_suffix_tells_the_format(tmp_path, name, format_name):
    import gzip

    text = b"1 1:1\n" if format_name == "SvmlightSource" else b"%%MatrixMarket matrix coordinate real general\n1 1 0\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert type(open_source(tmp_path / name)).__name__ == format_name
    assert type(open_source(str(tmp_path / name))).__name__ == format_name


@pytest.mark.parametrize("name", ["xlearn/small_head.txt", "a9a.t.gz", "lightgbm/rank.test.query"])
def test_a_suffix_that_tells_nothing_is_an_error_that_lists_the_formats(name):
    with pytest.raises(ValueError, match="tells no format: give format=, one of svmlight") as caught:
        open_source(DATA / name)
    assert all(name in str(caught.value) for name, known in FORMATS.items() if known.suffixes)


def test_formats_given_by_name_win():
    assert read(open_source(DATA / "a9a.t.gz", format="svmlight"))[0].shape == (16281, 122)
    with pytest.raises(
        ValueError,
        match="format='xls' is not known, expected one of svmlight, matrix_market, csv, libffm, vw, uci, lda_c, arff",
    ):
        open_source(DATA / "a9a.t.gz", format="xls")


def test_unknown_options_are_refused_with_those_that_are_known(tmp_path):
    (tmp_path / "x.svm").write_text("1 1:1\n")
    with pytest.raises(
        ValueError, match="label: no option of format svmlight, expected only n_features, zero_based, dtype"
    ):
        open_source(tmp_path / "x.svm", label="y")
    with pytest.raises(ValueError, match="zero_based: no option of format memory, expected only n_features, dtype"):
        open_source(np.eye(2), zero_based=True)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*x\.svm'"):
        open_source(tmp_path / "x.svm")
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(ValueError, match=r"x\.npy: is a folder, expected a file"):
        open_source(tmp_path / "x.npy")


def test_a_missing_file_is_that_error_of_a_conversion_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (ss.convert, preview):
        with pytest.raises(FileNotFoundError) as raised:
            call("x.svm", "x.zarr")
        assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, "x.svm")


def test_a_url_of_a_file_is_its_path(tmp_path):
    path = tmp_path / "a b.svm"
    path.write_text("1 1:1\n")
    source = open_source(path.as_uri())
    assert read(source)[0].shape == (1, 1)
    assert source.name == str(path)
    ss.convert(path.as_uri(), (tmp_path / "a.zarr").as_uri())
    assert ss.convert((tmp_path / "a.zarr").as_uri(), tmp_path / "b.zarr", format="sparsestore").shape == (1, 1)


def test_other_urls_are_refused_without_what_is_secret_in_them(tmp_path):
    with pytest.raises(ValueError, match=r"^https://x\.y/a\.svm: scheme 'https' is not supported.* copied") as raised:
        ss.convert("https://me:secret@x.y/a.svm?key=secret", tmp_path / "a.zarr")
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match=r"^file://x/a\.svm: names the machine 'x', expected file:///"):
        open_source("file://x/a.svm")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.svm")
    with pytest.raises(ValueError, match=r"x\.svm: is a pipe or a device, expected a file: write what it gives to one"):
        open_source(tmp_path / "x.svm")


def test_binary_formats_are_not_unpacked(tmp_path):
    (tmp_path / "x.npy.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a npy file can not be read through \.gz: unpack it first"):
        open_source(tmp_path / "x.npy.gz")


def test_a_source_is_taken_as_it_is():
    source = open_source(np.eye(2))
    assert open_source(source) is source
    with pytest.raises(ValueError, match="is opened already, expected no options, found dtype"):
        open_source(source, dtype="float32")
    with pytest.raises(ValueError, match="format='npy' is for files, found a ndarray in memory"):
        open_source(np.eye(2), format="npy")


@pytest.mark.parametrize("value", ["auto", "no", 1, None])
def test_what_is_neither_true_nor_false_is_refused(tmp_path, value):
    """As scikit-learn's "auto", which would be true, and shift all features."""
    (tmp_path / "a.svm").write_text("1 1:1\n0 2:1\n")
    with pytest.raises(ValueError, match=f"zero_based={value!r}, expected True or False"):
        open_source(tmp_path / "a.svm", zero_based=value)
    open_source(tmp_path / "a.svm", qid=None)


def test_options_that_give_their_elements_once_are_looked_at_all_the_same(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,3\n")
    source = open_source(tmp_path / "a.csv", drop=(name for name in ["b"]), keep=iter(["c:int64"]))
    assert source.feature_names == ["a"]
    assert source.columns == {"c": ("int64", ())}
    assert source.provenance()["options"]["drop"] == ["b"]


def test_numbers_of_numpy_are_options_as_those_of_python_are(tmp_path):
    (tmp_path / "a.svm").write_text("1 1:1\n0 2:1\n")
    options = {"n_features": np.int64(16), "zero_based": np.bool_(False)}
    source = open_source(tmp_path / "a.svm", **options)
    assert json.loads(json.dumps(source.provenance()))["options"]["n_features"] == 16
    with ss.convert(tmp_path / "a.svm", tmp_path / "a.zarr", progress=False, **options) as store:
        assert store.shape == (2, 16)
