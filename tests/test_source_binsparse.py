"""binsparse: each format of its specification that is read equals scipy; whatever disagrees with itself is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import check_source, read
from scipy import sparse

from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

h5py = pytest.importorskip("h5py")


def matrix() -> Any:
    return sparse.random_array((30, 8), density=0.3, rng=np.random.default_rng(0), format="csr", dtype=np.float32)


def arrays(kind: str) -> dict[str, Any]:
    x = matrix()
    if kind in ("CSR", "CSC"):
        y = x.asformat(kind.lower())
        return {"pointers_to_1": y.indptr.astype(np.uint64), "indices_1": y.indices.astype(np.uint64), "values": y.data}
    if kind in ("DMAT", "DMATR"):
        return {"values": x.toarray().reshape(-1)}
    y = x.tocoo() if kind != "COOC" else x.tocsc().tocoo()
    places = (y.col, y.row) if kind == "COOC" else (y.row, y.col)
    return {"indices_0": places[0].astype(np.uint64), "indices_1": places[1].astype(np.uint64), "values": y.data}


def described(kind: str, stored: dict[str, Any], **changed: Any) -> dict[str, Any]:
    n = len(stored["values"])
    types = {name: str(values.dtype) for name, values in stored.items()}
    found = {"version": "0.1", "format": kind, "shape": [30, 8], "number_of_stored_values": n, "data_types": types}
    return {name: value for name, value in {**found, **changed}.items() if value is not None}


def saved(folder: Path, descriptor: Any, stored: dict[str, Any], group: str = "/") -> Path:
    path = folder / "x.bsp.h5"
    with h5py.File(path, "w") as file:
        where = file.require_group(group)
        where.attrs["binsparse"] = descriptor if isinstance(descriptor, str) else json.dumps(descriptor)
        for name, values in stored.items():
            where[name] = values
    return path


def opened(path: Path, **options: Any) -> Any:
    return open_source(path, format="binsparse", **options)


@pytest.mark.parametrize("kind", ["CSR", "CSC", "COO", "COOR", "COOC", "DMAT", "DMATR"])
def test_equals_scipy(tmp_path: Path, kind: str) -> None:
    stored = arrays(kind)
    source = opened(saved(tmp_path, {"binsparse": described(kind, stored), "author": "x"}, stored))
    assert source.sorted_rows == (kind in ("CSR", "DMAT", "DMATR"))
    check_source(source, matrix())


def test_in_a_group_and_without_the_outer_name(tmp_path: Path) -> None:
    stored = arrays("CSR")
    path = saved(tmp_path, described("CSR", stored), stored, "a/b")
    check_source(opened(path, group="a/b"), matrix())
    with pytest.raises(SourceError, match=r"x\.bsp\.h5: /: has no attribute 'binsparse'"):
        opened(path)
    with pytest.raises(SourceError, match="looks like binsparse: give format='binsparse'"):
        open_source(saved(tmp_path, described("CSR", stored), stored))


@pytest.mark.parametrize("form", [2, 3])
def test_in_a_zarr_folder(tmp_path: Path, form: int) -> None:
    zarr = pytest.importorskip("zarr")
    stored = arrays("CSC")
    group = zarr.open_group(tmp_path / "x", mode="w", zarr_format=form)
    group.attrs["binsparse"] = described("CSC", stored)
    for name, values in stored.items():
        group.create_array(name, data=values)
    check_source(opened(tmp_path / "x"), matrix())


def test_one_value_for_all_and_booleans(tmp_path: Path) -> None:
    stored = arrays("CSR")
    n = len(stored["values"])
    pattern = (matrix() != 0).astype(np.int8) * 7
    types = {"pointers_to_1": "uint64", "indices_1": "uint64", "values": "iso[int8]"}
    descriptor = described("CSR", stored, data_types=types)
    check_source(opened(saved(tmp_path, descriptor, {**stored, "values": np.array([7], np.int8)})), pattern)
    descriptor["data_types"]["values"] = "bint8"
    source = opened(saved(tmp_path, descriptor, {**stored, "values": np.full(n, 1, np.uint8)}))
    assert source.dtype == bool
    check_source(source, pattern.astype(bool))


def test_a_fill_value_of_zero_is_none(tmp_path: Path) -> None:
    stored = {**arrays("CSR"), "fill_value": np.zeros(1, np.float32)}
    descriptor = described("CSR", arrays("CSR"), fill=True)
    check_source(opened(saved(tmp_path, descriptor, stored)), matrix())
    path = saved(tmp_path, descriptor, {**stored, "fill_value": np.ones(1, np.float32)})
    with pytest.raises(SourceError, match=r"fill_value: is 1\.0, expected 0: entries that are not stored are zeros"):
        opened(path)


BAD: dict[str, tuple[Any, str]] = {
    "json": ("{", "/: binsparse: is no JSON"),
    "list": ("[1]", "/: binsparse: expected an object with version, format, shape and data_types"),
    "version": ({"version": "2.0"}, "/: binsparse: version '2.0', expected 0.1"),
    "format": ({"format": "DCSR"}, "/: binsparse: format 'DCSR' is not read, expected one of CSR, CSC, COOR"),
    "custom": ({"custom": {}}, "/: binsparse: format 'CSR' is not read"),
    "structure": ({"structure": "symmetric_lower"}, "/: binsparse: structure 'symmetric_lower' is not read"),
    "shape": ({"shape": [30]}, "/: binsparse: has shape '[30]', expected two whole numbers"),
    "wide_shape": ({"shape": [10**15, 8]}, "pointers_to_1: has shape (31,), expected (1000000000000001,)"),
    "number": ({"number_of_stored_values": -1}, "/: binsparse: number_of_stored_values is '-1', expected a whole"),
    "few": ({"number_of_stored_values": 3}, "indices_1: has shape (72,), expected (3,)"),
    "complex": (
        {"data_types": {"pointers_to_1": "uint64", "indices_1": "uint64", "values": "complex[float32]"}},
        "/: binsparse: type 'complex[float32]' of values can not be stored",
    ),
    "other_type": (
        {"data_types": {"pointers_to_1": "uint64", "indices_1": "int32", "values": "float32"}},
        "indices_1: is of dtype uint64, expected int32 as the descriptor says",
    ),
    "no_types": ({"data_types": None}, "/: binsparse: expected an object with version"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_descriptor_is_refused(tmp_path: Path, case: str) -> None:
    changed, message = BAD[case]
    stored = arrays("CSR")
    descriptor = changed if isinstance(changed, str) else described("CSR", stored, **changed)
    path = saved(tmp_path, descriptor, stored)
    with pytest.raises(SourceError) as caught:
        opened(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_indices_beyond_the_shape_are_refused(tmp_path: Path) -> None:
    for kind, message in (("COO", "row numbers from 0 to 99, expected 0 to 29"), ("CSR", r"in rows 0 to 30: row")):
        stored = arrays(kind)
        stored["indices_0" if kind == "COO" else "indices_1"][-1] = 99
        with pytest.raises(SourceError, match=rf"x\.bsp\.h5: {message}"):
            read(opened(saved(tmp_path, described(kind, stored), stored)))
