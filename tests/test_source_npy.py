"""numpy's .npy: mapped, in both orders."""

from __future__ import annotations

import numpy as np
import pytest
from check_source import check_source, peak_of_reading, read

from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source


def saved(path, array):
    np.save(path / "x.npy", array, allow_pickle=True)
    return path / "x.npy"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool", ">i4"])
def test_equals_numpy(tmp_path, order, dtype):
    x = np.where(np.random.default_rng(0).random((500, 30)) < 0.2, 3, 0).astype(dtype).copy(order)
    source = open_source(saved(tmp_path, x))
    assert source.dtype == np.dtype(dtype).newbyteorder("=")
    check_source(source, x.astype(source.dtype))


def test_no_rows(tmp_path):
    check_source(open_source(saved(tmp_path, np.zeros((0, 4)))), np.zeros((0, 4)))


def test_values_and_width_can_be_changed(tmp_path):
    source = open_source(saved(tmp_path, np.eye(3)), dtype="float32", n_features=5)
    check_source(source, np.eye(3, 5, dtype=np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"has shape \(3,\), expected 2 dimensions: \(rows, features\)"),
        (np.zeros((2, 2), complex), "values of dtype complex128 can not be stored"),
        (np.array([[None]]), "holds Python objects, expected numbers: they are never unpickled"),
        (np.zeros((2, 2), "f4,f4"), r"values of dtype .* can not be stored"),
    ],
    ids=["one_dimension", "complex", "objects", "structured"],
)
def test_refuses(tmp_path, array, message):
    with pytest.raises(ValueError, match=rf"x\.npy: {message}"):
        open_source(saved(tmp_path, array))


def test_refuses_files_that_are_not_as_long_as_they_say(tmp_path):
    path = saved(tmp_path, np.zeros((10, 10)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"x\.npy: has 927 bytes, expected 928 for float64 of shape \(10, 10\)"):
        open_source(path)
    path.write_bytes(whole.replace(b"(10, 10)", b"(10**9,)"))
    with pytest.raises(SourceError, match=r"x\.npy: not a \.npy header"):
        open_source(path)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"x\.npy: not a \.npy header"):
        open_source(path)


@pytest.mark.parametrize("shape", ["(10,010)", "(100)", "(10,,10)", "(,)"])
def test_a_shape_that_python_does_not_read_as_a_tuple_is_refused(tmp_path, shape):
    path = saved(tmp_path, np.zeros((10, 10)))
    path.write_bytes(path.read_bytes().replace(b"(10, 10)", shape.ljust(8).encode()))
    with pytest.raises(ValueError, match=r"."):
        np.load(path)
    with pytest.raises(SourceError, match=r"x\.npy: not a \.npy header"):
        open_source(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_stays_within_the_bound(tmp_path, order):
    max_bytes = 16 << 20
    np.save(tmp_path / "big.npy", np.ones((100_000, 100), np.float32, order))
    np.save(tmp_path / "small.npy", np.ones((5, 5), np.float32, order))
    peak = peak_of_reading(
        """
        import sys
        from sparsestore.sources.registry import open_source
        source, warm, max_bytes = open_source(sys.argv[1]), open_source(sys.argv[2]), int(sys.argv[3])
        """,
        tmp_path / "big.npy",
        tmp_path / "small.npy",
        max_bytes,
    )
    assert peak <= max_bytes + (4 << 20)


def test_blocks_of_a_full_matrix_keep_the_bound(tmp_path):
    source = open_source(saved(tmp_path, np.ones((1000, 50))))
    assert len(list(source.blocks(50_000))) > 10
    assert read(source, 50_000)[0].nnz == 50_000
