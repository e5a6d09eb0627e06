"""What documents and arrays declare is held against the rules, against each other, and against the bytes there are."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from trust.structure import Files

import sparsestore as ss
from sparsestore.documents import key_problem, parse_json
from sparsestore.errors import FormatError
from sparsestore.statistics import LabelAccumulator, LabelStatistics, merge
from sparsestore.zarr_format import ArraySpec, Codec

Document = dict[str, Any]


@pytest.fixture(params=["raw", "compact"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(tmp_path / "s.zarr", request.param)


def changed(files: Files, path: str, change: Callable[[Document], Any]) -> None:
    """Write a store of which one document is changed, and every checksum made anew."""
    objects = dict(files.objects)
    segment, manifest = (json.loads(objects[key]) for key in (f"{files.prefix}segment.json", "versions/00000001.json"))
    if path == "segment.json":
        change(segment)
    elif path == "manifest":
        change(manifest)
    else:
        key = f"{files.prefix}{path}/zarr.json"
        document = json.loads(objects[key])
        change(document)
        objects[key] = json.dumps(document).encode()
    for key, payload in files.sealed(objects, manifest, segment).items():
        (files.root / key).write_bytes(payload)


def inner(document: Document) -> list[Document]:
    """Codecs of inner chunks."""
    return list(document["codecs"][0]["configuration"]["codecs"])


WRONG: dict[str, tuple[str, Callable[[Document], Any], str]] = {
    "constant is text": ("segment.json", lambda d: d.update(constant="no"), "constant: found 'no', expected true or"),
    "another profile": ("segment.json", lambda d: d.update(profile="zip"), "profile: found 'zip', expected one of raw"),
    "wider than the store": ("segment.json", lambda d: d.update(n_features=31), "n_features is 31"),
    "longest row": ("segment.json", lambda d: d.update(longest_row=1), "longest_row is 1, with 72 entries"),
    "longer than wide": (
        "segment.json",
        lambda d: d.update(longest_row=31),
        "longest_row is 31, with 72 entries of 30",
    ),
    "another data dtype": ("segment.json", lambda d: d.update(data_dtype="int8"), r"data.*float32.*expected int8"),
    "another indices dtype": ("segment.json", lambda d: d.update(indices_dtype="int32"), r"uint16.*expected int32"),
    "an object twice": ("segment.json", lambda d: d["objects"].append(d["objects"][0]), "expected each once"),
    "shuffled is a number": ("manifest", lambda d: d["segments"][0].__setitem__(4, 1), "expected true or false"),
    "format is true": ("manifest", lambda d: d.update(format=True), "format True is not known"),
    "a column of blocks": ("manifest", lambda d: d["columns"]["y"].update(shape=[2, 2]), r"expected \[\] or \[k\]"),
    "row_id as a column": ("manifest", lambda d: d["columns"].update(row_id=d["columns"]["y"]), "kept by segments"),
    "shape": ("X/indices", lambda d: d["shape"].__setitem__(0, 71), r"\(71,\).*expected uint16 \(72,\)"),
    "byte order": ("X/indptr", lambda d: inner(d)[0].update(configuration={"endian": "big"}), "little-endian numbers"),
    "chunk grid": ("X/indptr", lambda d: d["chunk_grid"].update(name="rectilinear"), "expected regular"),
    "transformers": ("X/indptr", lambda d: d.update(storage_transformers=[{"name": "x"}]), "expected none"),
    "an unknown key": ("X/indptr", lambda d: d.update(extension={}), "extension: found {}, expected no such key"),
    "index codecs": (
        "X/indptr",
        lambda d: d["codecs"][0]["configuration"].update(index_codecs=[{"name": "bytes"}]),
        "little-endian order, then crc32c",
    ),
    "a huge chunk": (
        "X/indptr",
        lambda d: (
            d["codecs"][0]["configuration"].update(chunk_shape=[1 << 30]),
            d["chunk_grid"]["configuration"].update(chunk_shape=[1 << 30]),
        ),
        "from 1 to 65536",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_document_that_disagrees_is_an_error_and_reported(files: Files, kind: str) -> None:
    path, change, message = WRONG[kind]
    changed(files, path, change)
    with pytest.raises(ss.SparsestoreError, match=f"(?s){message}"):
        ss.open(files.root)[:]
    if path != "manifest":
        assert ss.open(files.root).verify() != []


def test_a_codec_of_the_other_profile_is_an_error(files: Files) -> None:
    blosc = {"typesize": 2, "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}

    def change(document: Document) -> None:
        plain, *compressed = inner(document)
        codecs = [plain] if compressed else [plain, {"name": "blosc", "configuration": blosc}]
        document["codecs"][0]["configuration"]["codecs"] = codecs

    changed(files, "X/indices", change)
    with pytest.raises(ss.CorruptStoreError, match=r"X/indices/zarr\.json.*rows 0 to 24.*expected uint16"):
        ss.open(files.root)[:]


def test_a_column_that_is_not_compressed_is_an_error(files: Files) -> None:
    def change(document: Document) -> None:
        document["codecs"][0]["configuration"]["codecs"] = inner(document)[:1]

    changed(files, "columns/y", change)
    with pytest.raises(ss.CorruptStoreError, match=r"columns/y/zarr\.json.*a column is always compressed"):
        ss.open(files.root).column("y")[:]


@pytest.mark.parametrize("rows", [1000, 2**31, 2**40, 2**62])
def test_rows_that_there_are_not_take_no_memory(files: Files, rows: int) -> None:
    objects = dict(files.objects)
    segment, manifest = (json.loads(objects[key]) for key in (f"{files.prefix}segment.json", "versions/00000001.json"))
    segment["rows"] = manifest["shape"][0] = manifest["segments"][0][1] = rows
    for path, n in (("X/indptr", rows + 1), ("columns/y", rows), ("columns/name", rows)):
        document = json.loads(objects[f"{files.prefix}{path}/zarr.json"])
        document["shape"][0] = n
        objects[f"{files.prefix}{path}/zarr.json"] = json.dumps(document).encode()
    for key, payload in files.sealed(objects, manifest, segment).items():
        (files.root / key).write_bytes(payload)
    store = ss.open(files.root)
    assert store.shape[0] == rows
    tracemalloc.start()
    try:
        for read in (
            lambda: store[:],
            lambda: store[5],
            lambda: store.column("y")[:],
            lambda: store.column("name")[:9],
        ):
            with pytest.raises(ss.CorruptStoreError, match="X/indptr"):
                read()
        assert store.verify() != []
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"a":1,"b":2,"a":1}', "the key 'a' stands there twice"),
        (b'{"a":{"b":1,"b":2}}', "the key 'b' stands there twice"),
        (b'{"a":NaN}', "NaN is no number"),
        (b'{"a":[-Infinity]}', "-Infinity is no number"),
        (b'{"a":1e999}', "1e999 is too large"),
        ('{"a":1}'.encode("utf-16"), "can't decode"),
        (b'\xef\xbb\xbf{"a":1}', "BOM"),
        (b'{"a":"\xed\xa0\x80"}', "can't decode"),
        (b'{"a":' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":' + b"[" * 100_000, "recursion"),
    ],
)
def test_json_is_read_strictly(payload: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=f"the document is no JSON: .*{reason}"):
        parse_json(payload, "the document")


def test_a_message_does_not_repeat_a_huge_document() -> None:
    document = ArraySpec((3,), "float32", 1, 4).to_document()
    with pytest.raises(FormatError, match=r"fill_value: found 'xxx.*\.\.\., expected") as caught:
        ArraySpec.from_document(document | {"fill_value": "x" * 100_000}, "a")
    assert len(str(caught.value)) < 1000
    with pytest.raises(FormatError, match=r"(?s)k0: found 0, expected no such key.*and 4950 more") as caught:
        ArraySpec.from_document(document | {f"k{i}": 0 for i in range(5000)}, "a")
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("key", ["a/" + "b" * 256, "/".join(["a"] * 600), "\ud800", "a/\udfff"])
def test_a_key_that_no_file_can_have_is_refused(key: str) -> None:
    assert key_problem(key) is not None


def a_store_with_a_mask(tmp_path: Path) -> Path:
    masked = np.ma.MaskedArray(np.arange(6), [0, 1, 0, 0, 1, 0])
    ss.convert(sp.csr_array(np.eye(6, dtype=np.float32)), tmp_path / "m", columns={"age": masked}, progress=False)
    return tmp_path / "m"


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"shape": [2]}])
def test_a_mask_that_does_not_fit_its_column_is_an_error(
    tmp_path: Path, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ss.open(a_store_with_a_mask(tmp_path))
    mask = store._reader.segment(0).array("columns/age.mask")
    spec = mask.spec
    other = ArraySpec((6, *wrong.get("shape", [])), wrong.get("dtype", "bool"), spec.chunk, spec.shard, Codec("blosc"))
    monkeypatch.setattr(mask, "spec", other)
    with pytest.raises(ss.FormatError, match=r"the mask of column 'age' is .*expected bool \(6,\)"):
        store.column("age")[:]


def some_statistics() -> tuple[Any, dict[str, Any]]:
    labels = LabelAccumulator("int64")
    labels.update(np.array([0, 1, 1, 2] * 50))
    statistics = labels.finish()
    assert statistics is not None
    return statistics.to_arrays()


@pytest.mark.parametrize(
    "attributes",
    [
        {"centre": None},
        {"centre": ["x"]},
        {"centre": [True, 0, 0, 0]},
        {"centre": [10**400, 0, 0, 0]},
        {"classes": [0, "a", 2]},
        {"classes": [2, 1, 0]},
        {"classes": [0, 1, None]},
        {"classes": list(range(70))},
        {"block_sizes": None},
        {"block_sizes": [1.0, *(2**i for i in range(1, 13))]},
    ],
)
def test_attributes_of_statistics_that_no_writer_writes_are_refused(attributes: dict[str, Any]) -> None:
    array, sound = some_statistics()
    with pytest.raises(ValueError, match="label statistics have"):
        LabelStatistics.from_arrays(array, sound | attributes)


@pytest.mark.parametrize(("i", "j", "value"), [(0, 0, np.nan), (3, 2, -1.0), (0, 0, 0.5), (2, 6, 1e6), (1, 1, 7.0)])
def test_sums_that_no_labels_have_are_refused(i: int, j: int, value: float) -> None:
    array, attributes = some_statistics()
    array[i, j] = value
    with pytest.raises(ValueError, match="label statistics have sums"):
        LabelStatistics.from_arrays(array, attributes)


def test_text_and_numbers_are_no_classes_of_one_column() -> None:
    found = []
    for dtype, values in (("int64", [0, 1]), ("string", ["a", "b"])):
        labels = LabelAccumulator(dtype)
        labels.update(np.array(values * 9, object if dtype == "string" else dtype))
        found.append(labels.finish())
    with pytest.raises(ValueError, match="labels"):
        merge([part for part in found if part is not None])
