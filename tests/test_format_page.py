"""docs/format.md is enough: a store is read here with zarr-python, json and numpy, following that page alone."""

import json
import re
from pathlib import Path

import anndata.io
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import sparsestore as ss


def crc32c(payload: bytes) -> int:
    """Bit by bit, after RFC 3720: nothing of the project or of its libraries."""
    crc = 0xFFFFFFFF
    for byte in payload:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def checked(path: Path, length: int, crc: str) -> bytes:
    payload = path.read_bytes()
    assert len(payload) == length
    assert f"{crc32c(payload):08x}" == crc
    return payload


def read(root: Path) -> tuple[sp.csr_matrix, dict[str, np.ndarray], np.ndarray]:
    """Matrix, columns and row numbers of the newest version."""
    attributes = json.loads((root / "zarr.json").read_text())["attributes"]
    assert attributes["sparsestore"] == {"format": 1}
    assert re.fullmatch("[0-9a-f]{32}", attributes["id"])
    newest = max(p for p in (root / "versions").iterdir() if p.suffix == ".json")
    payload = newest.read_bytes()
    assert payload[:11] == b'{"crc32c":"'
    assert payload[11:19].decode() == f"{crc32c(payload[21:]):08x}"
    manifest = json.loads(payload)
    lines = []
    for key, length, crc, n_segments in manifest["pages"]:
        page = json.loads(checked(root / key, length, crc))["segments"]
        assert len(page) == n_segments
        lines += page
    lines += manifest["segments"]
    n_features = manifest["shape"][1]
    parts, columns, row_ids = [], {name: [] for name in manifest["columns"]}, []
    checked(root / manifest["root"][0], *manifest["root"][1:])
    for name, rows, nnz, crc, _, row_id_start in lines:
        folder = root / "segments" / name
        document = (folder / "segment.json").read_bytes()
        assert f"{crc32c(document):08x}" == crc
        segment = json.loads(document)
        assert (segment["rows"], segment["nnz"]) == (rows, nnz)
        for key, length, crc in segment["objects"]:
            checked(folder / key, length, crc)
        group = zarr.open_group(folder, mode="r")
        indptr, indices, data = (group[f"X/{array}"][:] for array in ("indptr", "indices", "data"))
        if segment["constant"]:
            assert not (folder / "X/data/c").exists()
        assert indptr[0] == 0
        assert indptr[-1] == nnz == len(indices) == len(data)
        check_pieces(folder, group, "X/indices")
        matrix = (data.astype(manifest["dtype"]), indices.astype(np.int64), indptr)
        parts.append(sp.csr_matrix(matrix, shape=(rows, n_features)))
        for column, values in columns.items():
            found = group[f"columns/{column}"][:]
            if f"columns/{column}.mask" in group:
                found = np.ma.MaskedArray(found, group[f"columns/{column}.mask"][:])
            values.append(found)
        numbers = group["columns/row_id"][:] if "columns/row_id" in group else np.arange(rows)
        row_ids.append(row_id_start + numbers)
    return (
        sp.csr_matrix(sp.vstack(parts)),
        {name: np.ma.concatenate(values) for name, values in columns.items()},
        np.concatenate(row_ids),
    )


def check_pieces(folder: Path, group: zarr.Group, path: str) -> None:
    """Checksums beside an array whose chunks fill one shard."""
    codecs = json.loads((folder / path / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
    shard = (folder / path / "c/0").read_bytes()
    n_chunks = -(-group[path].shape[0] // group[path].chunks[0])
    per_shard = group[path].shards[0] // group[path].chunks[0]
    index = np.frombuffer(shard[-4 - 16 * per_shard : -4], "<u8").reshape(-1, 2)[:n_chunks]
    if len(codecs) == 1:
        stored = shard[: int(index.sum(axis=1).max())]
        pieces = [stored[at : at + 16384] for at in range(0, len(stored), 16384)]
    else:
        pieces = [shard[int(start) : int(start + length)] for start, length in index]
    assert group[f"checksums/{path}"][:].tolist() == [crc32c(piece) for piece in pieces]


@pytest.fixture(params=["raw", "compact"])
def profile(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.filterwarnings("ignore:Object at segment.json")  # zarr lists what is in a group, and says what is no array
def test_a_store_is_read_with_zarr_json_and_numpy_alone(tmp_path: Path, profile: str) -> None:
    rng = np.random.default_rng(0)
    x = sp.random_array((900, 70), density=0.1, rng=rng, format="csr", dtype=np.float32)
    x.data = np.rint(x.data * 9).astype(np.float32)
    names = np.array(["a", "ü", "", "long " * 9])[rng.integers(0, 4, 900)]
    y, two = rng.integers(-3, 3, 900), rng.random((900, 2)).astype(np.float32)
    age = np.ma.MaskedArray(rng.integers(0, 99, 900), rng.random(900) < 0.2)
    columns = {"y": y, "two": two, "name": names, "age": age}
    path = tmp_path / "s.zarr"
    store = ss.convert(x, path, columns=columns, profile=profile, shuffle=True, seed=3)
    more = sp.random_array((50, 70), density=0.1, rng=rng, format="csr", dtype=np.float32)  # fractions: another dtype
    ones = sp.csr_array((np.ones(3, np.float32), ([0, 4, 4], [1, 2, 69])), shape=(5, 70))  # constant
    store = store.append(more, y=y[:50], two=two[:50], name=names[:50], age=age[:50])
    store = store.append(ones, y=y[:5], two=two[:5], name=names[:5], age=age[:5])

    matrix, found, row_ids = read(path)

    order = np.concatenate([row_ids[:900], np.arange(900, 955)])
    assert sorted(row_ids[:900]) == list(range(900))
    assert row_ids[900:].tolist() == list(range(900, 955))
    whole = sp.vstack([x, more, ones]).tocsr()[order]
    assert matrix.dtype == np.float32
    assert (matrix != whole).nnz == 0
    for name, values in columns.items():
        expected = np.ma.concatenate([values, values[:50], values[:5]])[order]
        assert np.ma.allequal(found[name], expected, fill_value=False) or name in ("name", "age")
        assert found[name].tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:Object at segment.json")
def test_the_matrix_of_a_segment_is_anndatas(tmp_path: Path, profile: str) -> None:
    x = sp.random_array((300, 40), density=0.2, rng=np.random.default_rng(1), format="csr", dtype=np.float32)
    path = tmp_path / "s.zarr"
    ss.convert(x, path, profile=profile)
    (segment,) = (path / "segments").iterdir()
    backed = anndata.io.sparse_dataset(zarr.open_group(segment, mode="r")["X"])
    assert backed.shape == (300, 40)
    assert (backed[17:40] != x[17:40]).nnz == 0
    assert (backed.to_memory() != x).nnz == 0


@pytest.mark.slow
def test_more_than_256_appends_are_read_through_pages(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = ss.convert(np.eye(2), path)
    for i in range(300):
        with ss.store.append_to(path) as writer:
            writer.append(np.array([[i + 1, 0.0]]))
    matrix, _, row_ids = read(path)
    assert matrix[2:].toarray()[:, 0].tolist() == list(range(1, 301))
    assert row_ids.tolist() == list(range(302))
    assert (ss.open(path)[:] != matrix).nnz == 0
    assert store.shape == (2, 2)
