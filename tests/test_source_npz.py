"""scipy's .npz: every layout, mapped or streamed, and nothing believed that the file says of itself."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from check_source import DATA, check_source, peak_of_reading, read
from scipy import sparse

from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

LAYOUTS = ["csr", "csc", "coo", "bsr", "dia"]


def matrix() -> sparse.coo_array:
    x = sparse.random_array((600, 40), density=0.1, rng=np.random.default_rng(0), format="coo", dtype=np.float32)
    return sparse.dia_array(sparse.triu(sparse.tril(x, 5), -20)).tocoo()


def member(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def saved(path, *, compression=zipfile.ZIP_DEFLATED, raw=None, **changed):
    """An archive as scipy writes it of a small CSR matrix, with some members changed (None: left out)."""
    x = sparse.csr_array(np.arange(12.0).reshape(4, 3))
    members = {"indices": x.indices, "indptr": x.indptr, "format": np.array(b"csr"), "shape": np.array(x.shape)}
    members |= {"data": x.data, **changed}
    path = path / "x.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in members.items():
            if value is not None:
                archive.writestr(f"{name}.npy", value if isinstance(value, bytes) else member(value))
    return path


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_scipy(tmp_path, layout, compressed):
    path = tmp_path / "x.npz"
    sparse.save_npz(path, matrix().asformat(layout), compressed=compressed)
    source = open_source(path)
    assert source.sorted_rows == (layout in ("csr", "bsr"))
    assert source.provenance()["layout"] == layout
    check_source(source, sparse.load_npz(path))


@pytest.mark.parametrize("name", sorted(path.name for path in (DATA / "pecos_npz").glob("*.npz")))
def test_equals_scipy_on_real_files(name):
    check_source(open_source(DATA / "pecos_npz" / name), sparse.load_npz(DATA / "pecos_npz" / name))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_unsorted_rows_duplicates_and_other_dtypes(tmp_path, compression):
    path = saved(
        tmp_path,
        compression=compression,
        indptr=np.array([0, 3, 3, 4, 6], ">i8"),
        indices=np.array([2, 0, 2, 1, 1, 0], np.uint16),
        data=np.array([1, 2, 3, 4, 5, 6], ">f4"),
    )
    check_source(open_source(path), np.array([[2, 0, 4], [0, 0, 0], [0, 4, 0], [6, 5, 0]], np.float32))


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
def test_empty_matrices(tmp_path, compressed):
    path = tmp_path / "x.npz"
    for shape in ((0, 3), (5, 3)):
        for layout in LAYOUTS:
            sparse.save_npz(path, sparse.coo_array(shape, dtype=np.float32).asformat(layout), compressed=compressed)
            check_source(open_source(path), np.zeros(shape, np.float32))


class Bomb:
    def __reduce__(self):
        raise AssertionError("was pickled")


BAD = {
    "no_data": ({"data": None}, "has no member 'data' (found indices, indptr, format, shape): expected a matrix"),
    "no_indptr": ({"indptr": None}, "has no member 'indptr'"),
    "no_format": ({"format": None}, "has no member 'format'"),
    "format": ({"format": np.array(b"dok")}, "is in scipy's format 'dok', expected one of csr, csc, bsr, coo, dia"),
    "format_dtype": ({"format": np.array(3)}, "format is of dtype int64, expected a string"),
    "long_format": ({"format": np.array(b"x" * (2 << 20))}, "format.npy: has 2097152 bytes, expected at most 1048576"),
    "shape": ({"shape": np.array([4])}, "has shape [4], expected two whole numbers"),
    "negative_shape": ({"shape": np.array([-4, 3])}, "has shape (-4, 3), expected no negative numbers"),
    "other_shape": ({"shape": np.array([9, 3])}, "indptr has shape (5,), expected (10,)"),
    "indices": ({"indices": np.arange(3, dtype=np.int32)}, "indices has shape (3,), expected (11,)"),
    "index_dtype": ({"indices": np.arange(11.0)}, "indices is of dtype float64, expected integers"),
    "dimensions": ({"data": np.zeros((11, 2))}, "data has shape (11, 2), expected 1 dimensions for csr"),
    "complex": ({"data": np.zeros(11, complex)}, "values of dtype complex128 can not be stored"),
    "objects": (
        {"data": np.array([None] * 11)},
        "data.npy: holds Python objects, expected numbers: they are never unpickled",
    ),
    "no_header": ({"data": b"not an array"}, "data.npy: not a .npy header"),
    "short": ({"data": member(np.zeros(11))[:-8]}, "data.npy: has 208 bytes, expected 216 for float64 of shape (11,)"),
    "index_too_high": (
        {"indices": np.full(11, 7, np.int32)},
        "in rows 0 to 4: row 0 has feature number 7, expected 0 to 2",
    ),
    "indptr_falls": ({"indptr": np.array([0, 2, 1, 8, 11])}, "indptr falls at row 1: 2 to 1"),
    "indptr_too_high": ({"indptr": np.array([0, 2, 5, 8, 12])}, "indptr goes up to 12, but there are 11 entries"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("case", BAD)
def test_refuses(tmp_path, case, compression):
    changed, message = BAD[case]
    path = saved(tmp_path, compression=compression, **changed)
    with pytest.raises(ValueError, match=r"x\.npz") as caught:
        read(open_source(path))
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("layout", ["csc", "coo"])
def test_refuses_rows_beyond_the_shape(tmp_path, layout):
    path = tmp_path / "x.npz"
    x = sparse.coo_array(np.eye(4)).asformat(layout)
    (x.indices if layout == "csc" else x.row)[-1] = 9
    sparse.save_npz(path, x)
    with pytest.raises(SourceError, match=r"x\.npz: row numbers from 0 to 9, expected 0 to 3"):
        read(open_source(path))


def test_a_flipped_bit_of_a_deflated_member_is_found(tmp_path):
    path = tmp_path / "x.npz"
    x = sparse.csr_array(np.random.default_rng(0).random((50, 40)))
    sparse.save_npz(path, x)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("data.npy").header_offset + 5000
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.npz: data\.npy: damaged"):
        read(open_source(path))


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(SourceError, match=r"x\.npz: not a sound \.npz archive"):
        open_source(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(SourceError, match=r"x\.npz: has no member 'format' \(found a\)"):
        open_source(path)
    sparse.save_npz(path, sparse.csr_array(np.eye(100)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"x\.npz: not a sound \.npz archive"):
        open_source(path)


def test_a_row_made_to_expand_is_refused_before_it_is_held(tmp_path):
    n = 40_000_000
    path = saved(tmp_path, data=np.zeros(n, np.int8), indices=np.zeros(n, np.int8), indptr=np.array([0, n, n, n, n]))
    assert path.stat().st_size < 200_000
    with pytest.raises(SourceError, match=r"x\.npz: row 0 has 40000000 entries, expected at most 3"):
        read(open_source(path), 1 << 20)


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("layout", ["csr", "coo", pytest.param("csc", marks=pytest.mark.slow)])
def test_memory_stays_within_the_bound(tmp_path, layout, compressed):
    max_bytes = 16 << 20
    rng = np.random.default_rng(0)
    n = 3_000_000
    x = sparse.csr_array((np.ones(n), rng.integers(0, 1000, n, np.int32), np.arange(0, n + 1, 3)), shape=(n // 3, 1000))
    sparse.save_npz(tmp_path / "big.npz", x.asformat(layout), compressed=compressed)
    sparse.save_npz(tmp_path / "small.npz", x[:5].asformat(layout), compressed=compressed)
    peak = peak_of_reading(
        """
        import sys
        from sparsestore.sources.registry import open_source
        source, warm, max_bytes = open_source(sys.argv[1]), open_source(sys.argv[2]), int(sys.argv[3])
        """,
        tmp_path / "big.npz",
        tmp_path / "small.npz",
        max_bytes,
    )
    assert peak <= max_bytes + (4 << 20)
