"""TFRecord files: equal to what TensorFlow and protobuf read, each corner decided, bad files refused by record."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tfrecords as t
from check_source import DATA, check_source, peak_of_reading, read
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.cli import app
from sparsestore.errors import SourceError
from sparsestore.kernels import example as e
from sparsestore.kernels import frames
from sparsestore.sources.registry import open_source

TRAIN = DATA / "fuxictr/train.tfrecord"
FIELDS = (
    "cms_group_id,userid,cate_id,cms_segid,occupation,adgroup_id,brand,pvalue_level,campaign_id,customer,"
    "shopping_level,pid,age_level,final_gender_code"
)


def opened(folder: Path, data: bytes, name: str = "x.tfrecord", **options: Any) -> Any:
    path = folder / name
    path.write_bytes(data)
    return open_source(path, **options)


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


# --------------------------------------------------------------------------------------------- independent readers


def test_equals_tensorflow_on_a_real_file(tf: Any) -> None:
    names = FIELDS.split(",")
    spec = {name: tf.io.FixedLenFeature([], tf.int64) for name in names} | {
        "clk": tf.io.FixedLenFeature([], tf.float32)
    }
    parsed = tf.io.parse_example([r.numpy() for r in tf.data.TFRecordDataset(str(TRAIN))], spec)
    x = np.stack([parsed[name].numpy() for name in names], 1)
    source = open_source(TRAIN, features=FIELDS, label="clk")
    assert source.feature_names == names
    check_source(source, x.astype(np.float32), {"y": parsed["clk"].numpy()})
    assert source.provenance()["format"] == "tfrecord"


@pytest.mark.parametrize("packing", ["", "GZIP", "ZLIB"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_bytes=st.sampled_from([2_000, 1 << 24]))
def test_reads_what_tensorflow_writes(
    tf: Any, tmp_path_factory: pytest.TempPathFactory, packing: str, seed: int, max_bytes: int
) -> None:
    rng = np.random.default_rng(seed)
    n, width = int(rng.integers(1, 120)), int(rng.choice([5, 300, 10**12]))
    made, path = tf.train, tmp_path_factory.getbasetemp() / "x.tfrecord"
    examples = []
    with tf.io.TFRecordWriter(str(path), packing) as writer:
        for _ in range(n):
            nnz = int(rng.integers(0, 30))
            index = rng.integers(0, width, nnz)
            index = np.unique(index) if rng.random() < 0.5 else index[np.sort(np.unique(index, return_index=True)[1])]
            value = rng.normal(size=len(index)).astype(np.float32)
            features = {
                "idx": made.Feature(int64_list=made.Int64List(value=index)),
                "val": made.Feature(float_list=made.FloatList(value=value)),
                "label": made.Feature(int64_list=made.Int64List(value=[int(rng.integers(-3, 3))])),
                "user": made.Feature(bytes_list=made.BytesList(value=[f"ü{rng.integers(99)}".encode()])),
                "when": made.Feature(int64_list=made.Int64List(value=[int(rng.integers(-(2**63), 2**63 - 1))])),
            }
            examples.append(made.Example(features=made.Features(feature=features)).SerializeToString())
            writer.write(examples[-1])
    spec = {
        "x": tf.io.SparseFeature("idx", "val", tf.float32, width),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "user": tf.io.FixedLenFeature([], tf.string),
        "when": tf.io.FixedLenFeature([], tf.int64),
    }
    wanted = tf.io.parse_example(examples, spec)
    options = {"indices": "idx", "values": "val", "label": "label", "keep": "user,when:int64", "n_features": width}
    source = open_source(path, compression=packing.lower() or None, **options)
    found, columns = read(source, max_bytes)
    rows, indices = wanted["x"].indices.numpy().T
    found.eliminate_zeros()
    kept = wanted["x"].values.numpy() != 0
    np.testing.assert_array_equal(found.tocoo().row, rows[kept])
    np.testing.assert_array_equal(found.indices, indices[kept])
    np.testing.assert_array_equal(found.data, wanted["x"].values.numpy()[kept])
    np.testing.assert_array_equal(columns["y"], wanted["label"].numpy())
    np.testing.assert_array_equal(columns["when"], wanted["when"].numpy())
    assert columns["user"].tolist() == [text.decode() for text in wanted["user"].numpy().tolist()]


def test_equals_tensorflow_where_lists_have_any_length(tf: Any, tmp_path: Path) -> None:
    rows = [{"ids": [3, 1, 3], "v": [0.5, 0.0, 2.0]}, {"ids": [], "v": [1.0, 0.0, 0.0]}, {"v": [0.0, 0.0, -1.5]}]
    path = tmp_path / "x.tfrecords"
    path.write_bytes(t.tfrecord(rows))
    spec = {"ids": tf.io.VarLenFeature(tf.int64), "v": tf.io.FixedLenFeature([3], tf.float32)}
    wanted = tf.io.parse_example([t.example(row) for row in rows], spec)
    ids = np.zeros((3, 4))
    np.add.at(ids, (wanted["ids"].indices.numpy()[:, 0], wanted["ids"].values.numpy()), 1)
    check_source(open_source(path, indices="ids", missing="zero"), ids.astype(np.float32))
    source = open_source(path, features="v")
    check_source(source, wanted["v"].numpy())
    assert source.feature_names == ["v[0]", "v[1]", "v[2]"]


def elwc_class() -> Any:
    """``ExampleListWithContext``, made by protobuf from its definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.Default()
    try:
        found = pool.FindMessageTypeByName("tensorflow.serving.ExampleListWithContext")
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto(name="tests/input.proto", package="tensorflow.serving")
        file.dependency.append("tensorflow/core/example/example.proto")
        made = file.message_type.add(name="ExampleListWithContext")
        for number, (name, label) in enumerate((("examples", 3), ("context", 1)), 1):
            made.field.add(name=name, number=number, label=label, type=11, type_name=".tensorflow.Example")
        pool.Add(file)
        found = pool.FindMessageTypeByName("tensorflow.serving.ExampleListWithContext")
    return message_factory.GetMessageClass(found)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_bytes=st.sampled_from([2_000, 1 << 24]))
def test_reads_lists_of_examples_with_their_context(
    tf: Any, tmp_path_factory: pytest.TempPathFactory, seed: int, max_bytes: int
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / "lists.tfrecord"
    rows, qids, grades, terms, queries = [], [], [], [], []
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(int(rng.integers(1, 30))):
            message = elwc_class()()
            query = rng.integers(0, 3, 2).astype(float)
            message.context.features.feature["query"].float_list.value.extend(query)
            message.context.features.feature["text"].bytes_list.value.append(f"q{number}".encode())
            for _ in range(int(rng.integers(0 if number else 1, 6))):
                added = message.examples.add()
                scores, grade = rng.integers(0, 3, 3).astype(float), int(rng.integers(0, 5))
                added.features.feature["scores"].float_list.value.extend(scores)
                added.features.feature["grade"].int64_list.value.append(grade)
                rows.append([*scores, *query])
                qids.append(number)
                grades.append(grade)
                queries.append(f"q{number}")
                terms.append(scores)
            writer.write(message.SerializeToString())
    source = open_source(
        path, layout="elwc", features="context.query,scores", label="grade", keep="context.text", dtype="float64"
    )
    assert source.feature_names == ["scores[0]", "scores[1]", "scores[2]", "context.query[0]", "context.query[1]"]
    found, columns = read(source, max_bytes)
    np.testing.assert_array_equal(found.toarray(), np.array(rows))
    np.testing.assert_array_equal(columns["qid"], qids)
    np.testing.assert_array_equal(columns["y"], grades)
    assert columns["context.text"].tolist() == queries


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_protobuf_whatever_the_order_of_its_parts(tf: Any, data: st.DataObject) -> None:
    name = st.sampled_from(["a", "b", "", "ü", "a" * 200])
    whole = st.integers(-(2**63), 2**63 - 1)
    real = st.floats(width=32, allow_nan=False)
    parts = []
    for _ in range(data.draw(st.integers(0, 6))):
        key = data.draw(name)
        packed = data.draw(st.booleans())
        value = data.draw(
            st.one_of(
                st.lists(whole, max_size=4).map(lambda v, packed=packed: t.ints(v, packed)),
                st.lists(real, max_size=4).map(lambda v, packed=packed: t.floats(v, packed)),
                st.lists(st.text(max_size=3), max_size=3).map(t.texts),
                st.just(b""),
                st.just(t.message(3, t.message(1, b"\x01\x02") + b"\x08\x03" + t.message(1, b"\x04"))),  # in parts
            )
        )
        unknown = data.draw(st.sampled_from([b"", b"\x20\x05", b"\x25abcd", b"\x21abcdefgh", t.message(9, b"xyz")]))
        both = [t.message(1, key.encode()), t.message(2, value + unknown)]
        parts.append(t.message(1, b"".join(both[::-1] if data.draw(st.booleans()) else both)))
    cut = data.draw(st.integers(0, len(parts)))
    payload = t.message(1, b"".join(parts[:cut])) + t.message(7, b"unknown") + t.message(1, b"".join(parts[cut:]))
    expected = {
        key.encode(): [text.encode() if isinstance(text, str) else text for text in getattr(value, kind).value]
        if (kind := value.WhichOneof("kind"))
        else []
        for key, value in tf.train.Example.FromString(payload).features.feature.items()
    }
    found = {
        key: [payload[slice(*value)] if isinstance(value, tuple) else value for value in values]
        for key, values in e.features_of(payload).items()
    }
    assert found == expected


# ------------------------------------------------------------------------------------------------------- layouts


def test_columns_are_named_and_of_their_dtype(tmp_path: Path) -> None:
    rows = [
        {"ids": [5, 2], "y": 1.0, "w": 0.5, "user": "ü", "when": 2**53 + 1, "price": 1.5, "age": 255},
        {"ids": [0], "y": 0, "w": 2, "user": "", "when": -1, "price": 3, "age": 0, "other": "x"},
    ]
    keep = ["user", "when:int64", "price:float64", "age:uint8"]
    source = opened(tmp_path, t.tfrecord(rows), indices="ids", label="y", weight="w", keep=keep)
    expected = {
        "y": np.array([1, 0], np.float32),
        "sample_weight": np.array([0.5, 2], np.float32),
        "user": np.array(["ü", ""], object),
        "when": np.array([2**53 + 1, -1]),
        "price": np.array([1.5, 3]),
        "age": np.array([255, 0], np.uint8),
    }
    assert source.columns == {
        name: ("string" if column.dtype == object else str(column.dtype), ()) for name, column in expected.items()
    }
    check_source(source, np.array([[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]], np.float32), expected)


def test_what_is_missing_is_zero_where_that_is_said(tmp_path: Path) -> None:
    rows = [{"a": 1.0, "v": [1, 2], "s": "x", "p": 2.0}, {"v": []}, {"a": b"", "s": b"", "p": b""}, {"a": []}]
    options = {"features": "a,v", "keep": "s,p:float32", "missing": "zero"}
    columns = {"s": np.array(["x", "", "", ""], object), "p": np.array([2, np.nan, np.nan, np.nan], np.float32)}
    source = opened(tmp_path, t.tfrecord(rows), **options)
    check_source(source, np.array([[1, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32), columns)
    options = {"indices": "i", "values": "v", "missing": "zero"}
    source = opened(tmp_path, t.tfrecord([{"i": [1], "v": [2.0]}, {"i": []}, {"v": b""}, {}]), **options)
    check_source(source, np.array([[0, 2], [0, 0], [0, 0], [0, 0]], np.float32))


CORNERS: dict[str, tuple[bytes, dict[str, Any], Any]] = {
    "unpacked": (t.tfrecord([{"i": t.ints([2, 0], False), "v": t.floats([5, 7], False)}]), {}, [[7, 0, 5]]),
    "duplicates": (t.tfrecord([{"i": [1, 0, 1], "v": [1.0, 2.0, 0.5]}]), {}, [[2, 1.5]]),
    "in_order_with_duplicates": (t.tfrecord([{"i": [0, 0], "v": [1.0, 2.0]}, {"i": [0], "v": [4.0]}]), {}, [[3], [4]]),
    "explicit_zero": (t.tfrecord([{"i": [1, 0], "v": [0.0, 1.0]}]), {}, [[1, 0]]),
    "whole_values": (t.tfrecord([{"i": [1], "v": [-7]}]), {}, [[0, -7]]),
    "one_based": (t.tfrecord([{"i": [1, 3], "v": [1, 2]}]), {"zero_based": False}, [[1, 0, 2]]),
    "width": (t.tfrecord([{"i": [1], "v": [2]}]), {"n_features": 4}, [[0, 2, 0, 0]]),
    "nan_and_inf": (t.tfrecord([{"i": [0, 1], "v": [float("nan"), float("-inf")]}]), {}, [[np.nan, -np.inf]]),
    "empty_rows": (t.tfrecord([{"i": [], "v": []}, {"i": [0], "v": [1]}, {"i": b"", "v": b""}]), {}, [[0], [1], [0]]),
    "the_last_counts": (
        t.record(t.message(1, t.entry("i", [5]) + t.entry("i", [0]) + t.entry("v", [2]) + t.entry("v", [3]))),
        {},
        [[3]],
    ),
    "unknown_fields": (
        t.record(
            t.message(3, b"abc")
            + t.message(1, t.message(2, b"x") + t.entry("i", [0]) + t.entry("v", [2]))
            + b"\x20\x01"
        ),
        {},
        [[2]],
    ),
    "other_features": (t.tfrecord([{"x" * 300: "y", "i": [0], "": 3, "v": [2], "iv": [8]}]), {}, [[2]]),
    "text_by_its_name": (t.tfrecord([{"i": [0], "v": [2]}]), {"indices": "i"}, [[2]]),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_reads(tmp_path: Path, corner: str) -> None:
    data, options, wanted = CORNERS[corner]
    options = {"indices": "i", "values": "v", **options}
    check_source(opened(tmp_path, data, **options), np.array(wanted, np.float32))


DENSE: dict[str, tuple[list[dict[str, Any]], str, Any]] = {
    "zeros_are_no_entries": ([{"a": 0, "b": 0.0}, {"a": 3, "b": -0.0}], "a,b", [[0, 0], [3, 0]]),
    "in_the_order_given": ([{"a": 1, "b": 2}], "b,a", [[2, 1]]),
    "lengths": ([{"v": [1, 0, 2], "a": 5}], "v,a", [[1, 0, 2, 5]]),
    "lengths_that_are_said": ([{"v": [1, 0, 2], "a": 5}], "v[3],a[1]", [[1, 0, 2, 5]]),
    "nan": ([{"a": float("nan")}], "a", [[np.nan]]),
}


@pytest.mark.parametrize("corner", DENSE)
def test_reads_dense_features(tmp_path: Path, corner: str) -> None:
    rows, features, wanted = DENSE[corner]
    check_source(opened(tmp_path, t.tfrecord(rows), features=features), np.array(wanted, np.float32))


@pytest.mark.parametrize(
    ("name", "pack", "options"),
    [
        ("x.tfrecord.gz", gzip.compress, {}),
        ("x.tfrecord", gzip.compress, {"compression": "gzip"}),
        ("x.tfrecord", zlib.compress, {"compression": "zlib"}),
        ("x.gz", bytes, {"compression": "none", "format": "tfrecord"}),
        ("x.tfrecord-00000-of-00002", bytes, {"format": "tfrecord"}),
    ],
)
def test_is_compressed_as_the_suffix_or_the_option_says(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], options: dict[str, Any]
) -> None:
    source = opened(tmp_path, pack(t.tfrecord([{"i": [1]}, {"i": [0]}])), name, indices="i", **options)
    check_source(source, np.array([[0, 1], [1, 0]], np.float32))


def test_a_list_without_examples_has_a_number_and_no_rows(tmp_path: Path) -> None:
    data = b"".join(map(t.record, [t.elwc([{"i": [0]}]), t.elwc([], {"q": 1}), t.elwc([{"i": [1]}, {"i": []}])]))
    source = opened(tmp_path, data, layout="elwc", indices="i")
    check_source(source, np.array([[1, 0], [0, 1], [0, 0]], np.float32), {"qid": np.array([0, 2, 2])})


def test_files_of_a_data_set_are_appended(tmp_path: Path) -> None:
    from sparsestore.convert import append_source

    for number in range(3):
        (tmp_path / f"x-0000{number}-of-00003").write_bytes(t.tfrecord([{"i": [number], "y": float(number)}]))
    options = {"format": "tfrecord", "indices": "i", "label": "y", "n_features": 3}
    ss.convert(tmp_path / "x-00000-of-00003", tmp_path / "s.zarr", **options)
    for number in (1, 2):
        append_source(tmp_path / f"x-0000{number}-of-00003", tmp_path / "s.zarr", **options)
    store = ss.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store[:].toarray(), np.eye(3))
    np.testing.assert_array_equal(store.column("y")[:], [0, 1, 2])


def test_the_command_converts_records(tmp_path: Path) -> None:
    out = str(tmp_path / "s.zarr")
    arguments = ["convert", str(TRAIN), out, "--features", FIELDS, "--label", "clk", "--shuffle", "--seed", "0"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    store = ss.open(out)
    assert store.shape == (100, 14)
    assert store.feature_names.tolist() == FIELDS.split(",")  # type: ignore[union-attr]
    (tmp_path / "x").write_bytes(gzip.compress(t.record(t.elwc([{"i": [1], "v": [2.0]}]))))
    options = ["--format", "tfrecord", "--layout", "elwc", "--indices", "i", "--values", "v", "--compression", "gzip"]
    found = CliRunner().invoke(app, ["convert", str(tmp_path / "x"), str(tmp_path / "l.zarr"), *options])
    assert found.exit_code == 0, found.output
    assert "qid" in ss.open(tmp_path / "l.zarr").columns


# ----------------------------------------------------------------------------------------------------- bad files

ROW = {"i": [1, 2], "v": [1.0, 2.0], "y": 1.0, "s": "x"}
GOOD = t.tfrecord([ROW, ROW])
N = len(GOOD) // 2
LONG = 9 << 20


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def framed(length: int) -> bytes:
    """The head of a record that claims a length."""
    raw = struct.pack("<Q", length)
    return raw + struct.pack("<I", t.masked(t.crc32c(raw)))


SPARSE = {"indices": "i", "values": "v"}
BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty": (b"", {}, "there are no records: give n_features if that is meant"),
    "no_entries": (t.tfrecord([{"i": [], "v": []}]), {}, "none of the 1 rows has an entry: give n_features if that is"),
    "text": (
        b"1 1:1\n2 2:2\n" * 3,
        {},
        "record 0 (byte 0): the checksum of its length is wrong, found '1 1:1\\n2 2:2\\n':",
    ),
    "gzip": (gzip.compress(GOOD), {}, "record 0 (byte 0): the checksum of its length is wrong, found"),
    "length": (flipped(GOOD, N), {}, f"record 1 (byte {N}): the checksum of its length is wrong, found"),
    "its_checksum": (flipped(GOOD, N + 9), {}, f"record 1 (byte {N}): the checksum of its length is wrong, found"),
    "payload": (
        flipped(GOOD, N + 20),
        {},
        f"record 1 (byte {N}): the checksum of its {N - 16} bytes is wrong: the file",
    ),
    "last_checksum": (
        flipped(GOOD, 2 * N - 1),
        {},
        f"record 1 (byte {N}): the checksum of its {N - 16} bytes is wrong",
    ),
    "cut_in_the_head": (
        GOOD[: N + 5],
        {},
        f"record 1 (byte {N}): cut short: it begins with 5 bytes, expected 12 or more",
    ),
    "cut": (GOOD[:-1], {}, f"record 1 (byte {N}): cut short: it has {N - 1} bytes, expected {N} or more"),
    "beyond_the_file": (
        GOOD + framed(10**6),
        {},
        f"record 2 (byte {2 * N}): cut short: it has 12 bytes, expected 1000016 or more",
    ),
    "too_long": (
        GOOD + framed(2**63),
        {},
        f"record 2 (byte {2 * N}): it has 9223372036854775808 bytes, expected at most",
    ),
    "all_bits": (framed(2**64 - 1), {}, "record 0 (byte 0): it has 18446744073709551615 bytes, expected at most"),
    "zeros": (bytes(100), {}, "record 0 (byte 0): the checksum of its length is wrong"),
    "no_message": (
        t.record(b"\xff" * 30),
        {},
        "record 0 (byte 0): it is no message tf.train.Example: check the layout",
    ),
    "cut_message": (t.record(t.example(ROW)[:-1]), {}, "record 0 (byte 0): it is no message tf.train.Example"),
    "elwc": (
        t.record(t.elwc([ROW])),
        {},
        "record 0 (byte 0): a feature has not one name and one value: check the layout",
    ),
    "example_as_elwc": (
        GOOD,
        {"layout": "elwc"},
        "record 0 (byte 0): example 0: it is no message tf.train.Example: check",
    ),
    "long_varint": (
        t.tfrecord([{"i": t.message(3, t.message(1, b"\xff" * 10 + b"\x01")), "v": [1]}]),
        {},
        "record 0 (byte 0): feature 'i' of it is no message tf.train.Example",
    ),
    "tenth_byte": (
        t.tfrecord([{"i": t.message(3, t.message(1, b"\xff" * 9 + b"\x02")), "v": [1]}]),
        {},
        "record 0 (byte 0): feature 'i' of it is no message tf.train.Example",
    ),
    "cut_float": (
        t.tfrecord([{"i": [1], "v": t.message(2, t.message(1, b"abc"))}]),
        {},
        "record 0 (byte 0): feature 'v' of",
    ),
    "group": (t.record(b"\x0b" + t.example(ROW)), {}, "record 0 (byte 0): it is no message tf.train.Example"),
    "field_zero": (t.record(b"\x02\x00"), {}, "record 0 (byte 0): it is no message tf.train.Example"),
    "huge_count": (
        t.record(t.message(1, b"\x0a" + t.varint(2**40))),
        {},
        "record 0 (byte 0): it is no message tf.train.Example",
    ),
    "no_key": (
        t.record(t.message(1, t.message(1, t.message(2, t.ints([1]))))),
        {},
        "record 0 (byte 0): a feature has not",
    ),
    "two_keys": (
        t.record(t.message(1, t.message(1, t.message(1, b"i") * 2 + t.message(2, t.ints([1]))))),
        {},
        "record 0 (byte 0): a feature has not one name and one value",
    ),
    "two_kinds": (
        t.tfrecord([{"i": t.ints([1]) + t.floats([1])}]),
        {},
        "record 0 (byte 0): feature 'i' is several kinds at",
    ),
    "missing": (
        t.tfrecord([ROW, {"i": [1]}]),
        {},
        f"record 1 (byte {N}): feature 'v' is missing: give missing='zero' if",
    ),
    "nobody_has_it": (
        GOOD,
        {"indices": "ids", "values": None, "missing": "zero"},
        "none of the 2 examples has the feature",
    ),
    "unequal": (
        t.tfrecord([{"i": [1, 2], "v": [1]}]),
        {},
        "record 0 (byte 0): feature 'v' has 1 values, expected one for",
    ),
    "values_alone": (
        t.tfrecord([ROW, {"v": [1]}]),
        {"missing": "zero"},
        f"record 1 (byte {N}): feature 'v' has 1 values",
    ),
    "negative": (
        t.tfrecord([{"i": [-1], "v": [1]}]),
        {},
        "record 0 (byte 0): feature 'i': index -1, expected 0 or more",
    ),
    "zero": (
        t.tfrecord([{"i": [0], "v": [1]}]),
        {"zero_based": False},
        "record 0 (byte 0): feature 'i': index 0, expected 1 or more: give zero_based=True if the first feature is 0",
    ),
    "high": (GOOD, {"n_features": 2}, "record 0 (byte 0): feature 'i': index 2, expected at most 1 (n_features=2)"),
    "int64": (
        t.tfrecord([{"i": [2**63 - 1], "v": [1]}]),
        {},
        "record 0 (byte 0): feature 'i': index 9223372036854775807",
    ),
    "float_index": (
        t.tfrecord([{"i": [1.0], "v": [1]}]),
        {},
        "record 0 (byte 0): feature 'i' is a float_list, expected int",
    ),
    "text_value": (
        t.tfrecord([{"i": [1], "v": "x"}]),
        {},
        "record 0 (byte 0): feature 'v' is a bytes_list, expected float",
    ),
    "label": (
        t.tfrecord([ROW, {**ROW, "y": [1, 2]}]),
        {"label": "y"},
        f"record 1 (byte {N}): feature 'y' has 2 values, expect",
    ),
    "no_label": (
        t.tfrecord([ROW, {"i": [], "v": []}]),
        {"label": "y", "missing": "zero"},
        f"record 1 (byte {N}): feature 'y' is missing",
    ),
    "nan_weight": (
        t.tfrecord([{**ROW, "y": float("nan")}]),
        {"weight": "y"},
        "record 0 (byte 0): the weight 'y' is nan, expected a finite number",
    ),
    "large_label": (
        t.tfrecord([{**ROW, "y": 16777217}]),
        {"label": "y"},
        "record 0 (byte 0): feature 'y' 16777217.0 is a whole number that float32 lacks: give dtype='float64'",
    ),
    "larger_label": (
        t.tfrecord([{**ROW, "y": 2**53 + 1}]),
        {"label": "y", "dtype": "float64"},
        "record 0 (byte 0): feature 'y' is a whole number that float64 may lack, from 2^53: keep it with :int64",
    ),
    "kept_number": (GOOD, {"keep": "i"}, "x.tfrecord: keep='i': the feature is taken already"),
    "kept_as_text": (
        GOOD,
        {"keep": "y"},
        "record 0 (byte 0): feature 'y' is a float_list, expected bytes_list (kept without",
    ),
    "kept_as_whole": (GOOD, {"keep": "y:int64"}, "record 0 (byte 0): feature 'y' is a float_list, expected int64_list"),
    "too_large": (
        t.tfrecord([{**ROW, "y": 300}]),
        {"keep": "y:uint8"},
        "record 0 (byte 0): feature 'y' is 300, which uint8 la",
    ),
    "negative_uint": (
        t.tfrecord([{**ROW, "y": -1}]),
        {"keep": "y:uint64"},
        "record 0 (byte 0): feature 'y' is -1, which uint",
    ),
    "no_text": (
        t.tfrecord([{**ROW, "s": t.texts([b"\xff"])}]),
        {"keep": "s"},
        "record 0 (byte 0): feature 's' is no UTF-8 te",
    ),
    "beyond": (
        t.tfrecord([{**ROW, "y": float("inf")}]),
        {"label": "y"},
        "record 0 (byte 0): the label 'y' is inf, expected a finite number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_record(tmp_path: Path, name: str) -> None:
    data, options, message = BAD[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(opened(tmp_path, data, **{**SPARSE, **options}))
    found = str(caught.value)
    assert found.startswith(f"{tmp_path / 'x.tfrecord'}: {message.removeprefix('x.tfrecord: ')}")
    assert found.isprintable()


def test_hints_at_a_compression_that_was_not_told(tmp_path: Path) -> None:
    for pack, name in ((gzip.compress, "gzip"), (zlib.compress, "zlib")):
        with pytest.raises(SourceError, match=f"give compression='{name}' if the file is compressed"):
            read(opened(tmp_path, pack(GOOD), **SPARSE))
    with pytest.raises(SourceError, match=r"x\.tfrecord: damaged \.gz data"):
        read(opened(tmp_path, GOOD, compression="gzip", **SPARSE))
    with pytest.raises(SourceError, match=r"x\.tfrecord: cut short: the file ends at byte"):
        read(opened(tmp_path, zlib.compress(GOOD)[:-2], compression="zlib", **SPARSE))


DENSE_BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "count": ([{"v": [1, 2]}, {"v": [1]}], {"features": "v"}, "feature 'v' has 1 values, expected 2"),
    "no_values": (
        [{"v": [1, 2]}, {"v": []}],
        {"features": "v"},
        "feature 'v' is missing: give missing='zero' if that is",
    ),
    "unknown": (
        [{"v": [1, 2]}],
        {"features": "v,w"},
        "the first examples have no values of 'w': check the names and the",
    ),
    "no_records": ([], {"features": "v"}, "there are no records: say the lengths of the features, such as name[1]"),
    "beyond": ([{"v": [1, 2]}], {"features": "v[3]"}, "feature 'v' has 2 values, expected 3"),
    "nothing": ([{"v": [1, 2]}], {"features": "v[0]"}, "features='v[0]': expected a length of at least 1"),
    "wide": ([{"v": [1, 2]}], {"features": "v[9999999]"}, "9999999 features, expected at most 1048576"),
    "twice": ([{"v": [1, 2]}], {"features": "v,v"}, "features='v': the feature is taken already"),
    "label_too": ([{"v": [1, 2]}], {"features": "v", "label": "v"}, "label='v': the feature is taken already"),
    "width": ([{"v": [1, 2]}], {"features": "v", "n_features": 2}, "n_features is for indices="),
    "both": (
        [{"v": [1, 2]}],
        {"features": "v", "indices": "v"},
        "expected indices=, with values= or without, or features=",
    ),
    "neither": ([{"v": [1, 2]}], {}, "expected indices=, with values= or without, or features="),
    "values": (
        [{"v": [1, 2]}],
        {"features": "v", "values": "v"},
        "expected indices=, with values= or without, or features=",
    ),
    "layout": (
        [{"v": [1, 2]}],
        {"features": "v", "layout": "sequence"},
        "layout='sequence', expected one of example, elwc",
    ),
    "compression": (
        [{"v": [1]}],
        {"features": "v", "compression": "bz2"},
        "compression='bz2', expected one of none, gzip",
    ),
    "nan": ([{"v": [1]}], {"features": "v", "missing": "nan"}, "missing='nan', expected one of error, zero"),
    "int": ([{"v": [1]}], {"features": "v", "dtype": "int8"}, "dtype=int8 for TFRecord, expected float32 or float64"),
    "kept": (
        [{"v": [1]}],
        {"features": "v", "keep": "a:date"},
        "keep='a:date': expected name:dtype with one of string, int8",
    ),
    "two_y": (
        [{"v": [1], "a": 1, "y": 1}],
        {"features": "v", "label": "a", "keep": "y:int8"},
        "two features become the column 'y'",
    ),
    "empty_name": ([{"v": [1]}], {"indices": ""}, "indices='': expected the name of a feature"),
    "context_indices": (
        [{"v": [1]}],
        {"indices": "context.v", "layout": "elwc"},
        "indices='context.v': expected a feature of the examples",
    ),
}


@pytest.mark.parametrize("name", DENSE_BAD)
def test_bad_features_and_options_are_refused(tmp_path: Path, name: str) -> None:
    rows, options, message = DENSE_BAD[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(opened(tmp_path, t.tfrecord(rows), **options))
    assert message in str(caught.value)


def test_a_bad_list_is_refused_with_its_example(tmp_path: Path) -> None:
    good = t.record(t.elwc([{"v": 1.0}, {"v": 1.0}], {"q": 1.0}))

    def message(payload: bytes, **options: Any) -> str:
        data = good + t.record(payload)
        with pytest.raises(SourceError) as caught:
            read(opened(tmp_path, data, layout="elwc", **{"features": "v,context.q", **options}))
        return str(caught.value).removeprefix(f"{tmp_path / 'x.tfrecord'}: record 1 (byte {len(good)}): ")

    assert message(t.elwc([{"v": 1.0}, {"w": 1.0}], {"q": 1.0})).startswith("example 1: feature 'v' is missing")
    assert message(t.elwc([{"v": 1.0}])).startswith("context: feature 'q' is missing")
    assert message(t.elwc([], {"q": 1.0}) * 2) == "it has several contexts: check the layout"
    assert message(b"\x0a\x05abc") == "it is no message ExampleListWithContext: check the layout"
    infinite = t.elwc([{"v": 1.0}], {"q": float("inf")})
    assert message(infinite, features="v", label="context.q").startswith("the label 'context.q' is inf")


# -------------------------------------------------------------------------------------------- loops and their twins


def same(found: Any, expected: Any, *, upto: int) -> None:
    assert found[:upto] == expected[:upto]
    if found.status == e.OK:
        for name, a, b in zip(found._fields, found, expected, strict=True):
            assert np.size(a) == np.size(b), name
            np.testing.assert_array_equal(np.ravel(a), np.ravel(b), name)


@settings(deadline=None, max_examples=200)
@given(
    payloads=st.lists(st.binary(max_size=40), max_size=5),
    flips=st.lists(st.integers(0, 10_000), max_size=2),
    cut=st.integers(0, 30),
    longest=st.sampled_from([10, 1000]),
)
def test_frames_agree_with_their_twin(payloads: list[bytes], flips: list[int], cut: int, longest: int) -> None:
    data = bytearray(b"".join(map(t.record, payloads)))
    for flip in flips:
        if data:
            data[flip // 8 % len(data)] ^= 1 << flip % 8
    text = np.frombuffer(bytes(data[: len(data) - cut]), np.uint8)
    found, expected = e.records(text, longest), e.records_numpy(text, longest)
    assert found[:3] == expected[:3]
    for a, b in zip(found[3:], expected[3:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert frames.first_damaged(text, *found[3:]) == frames.first_damaged_numpy(text, *found[3:])


NAMES = ["i", "v", "a", "b", "n", "w", "s"]
VALUES = st.one_of(
    st.lists(st.integers(-2, 40) | st.sampled_from([2**53, 2**63 - 1, -(2**63)]), max_size=4).map(t.ints),
    st.lists(st.integers(0, 300), max_size=4).map(lambda values: t.ints(values, False)),
    st.lists(st.sampled_from([0.0, 1.5, -2.0, float("nan")]), max_size=4).map(t.floats),
    st.lists(st.sampled_from([0.0, 1.5]), max_size=3).map(lambda values: t.floats(values, False)),
    st.lists(st.binary(max_size=3), max_size=2).map(t.texts),
    st.sampled_from([b"", b"\x20\x01", t.ints([1]) + t.floats([2.0])]),
)
EXAMPLES = st.lists(st.tuples(st.sampled_from([*NAMES, "", "vv"]), VALUES), max_size=8).map(
    lambda parts: t.message(1, b"".join(t.entry(name, value) for name, value in parts))
)
WANTED = {
    "sparse": [e.Feature(b"i", e.INDICES, needed=False), e.Feature(b"v", e.VALUES, needed=False)],
    "ids": [e.Feature(b"i", e.INDICES)],
    "dense": [e.Feature(b"a", e.FEATURE, 0, 1, False), e.Feature(b"b", e.FEATURE, 1, 2, False)],
    "needed": [e.Feature(b"a", e.FEATURE, 0, 1)],
    "columns": [
        e.Feature(b"n", e.NUMBER, 0, needed=False),
        e.Feature(b"s", e.TEXT, 0, needed=False),
        e.Feature(b"a", e.NUMBER, 1, needed=False),
    ],
    "whole": [e.Feature(b"w", e.WHOLE, 0)],
    "text": [e.Feature(b"s", e.TEXT, 0)],
    "mixed": [
        e.Feature(b"i", e.INDICES, needed=False),
        e.Feature(b"v", e.VALUES, needed=False),
        e.Feature(b"n", e.NUMBER, 0, needed=False),
        e.Feature(b"w", e.WHOLE, 0),
    ],
    "nothing": [],
}


@pytest.mark.parametrize("kind", WANTED)
@settings(deadline=None, max_examples=150)
@given(
    payloads=st.lists(st.one_of(EXAMPLES, st.binary(max_size=20)), max_size=4),
    flips=st.lists(st.integers(0, 10_000), max_size=2),
    base=st.integers(0, 1),
    limit=st.sampled_from([20, 2**63 - 3]),
)
@example(  # a feature of two kinds, and nothing that could be read after them
    payloads=[t.message(1, t.entry("a", t.ints([1]) + t.floats([2.0]) + b"\x0e"))], flips=[], base=0, limit=20
)
def test_messages_agree_with_their_twin(
    kind: str, payloads: list[bytes], flips: list[int], base: int, limit: int
) -> None:
    data = bytearray(b"".join(payloads))
    for flip in flips:
        if data:
            data[flip // 8 % len(data)] ^= 1 << flip % 8
    text = np.frombuffer(bytes(data), np.uint8)
    ends = np.cumsum([len(payload) for payload in payloads], dtype=np.int64)
    begins = np.append(0, ends)[:-1].astype(np.int64)
    found = e.examples(text, begins, ends, e.wanted_of(WANTED[kind]), base=base, limit=limit)
    same(found, e.examples_numpy(text, begins, ends, WANTED[kind], base=base, limit=limit), upto=4)


@settings(deadline=None, max_examples=150)
@given(
    payloads=st.lists(st.binary(max_size=12) | EXAMPLES.map(lambda x: t.message(1, x) + t.message(2, x)), max_size=4)
)
def test_lists_agree_with_their_twin(payloads: list[bytes]) -> None:
    text = np.frombuffer(b"".join(payloads), np.uint8)
    lengths = np.array([len(payload) for payload in payloads], np.int64)
    starts = np.cumsum(lengths) - lengths
    same(e.lists(text, starts, lengths), e.lists_numpy(text, starts, lengths), upto=2)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_rows_are_joined_as_by_their_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def rows(n: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        x = sparse.random_array((n, 5), density=0.4, format="csr", rng=rng)
        return x.indptr.astype(np.int64), x.indices.astype(np.int32), x.data

    own, more = rows(int(rng.integers(0, 6))), rows(3)
    of = rng.integers(0, 3, len(own[0]) - 1)
    for a, b in zip(e.joined(*own, of, more), e.joined_numpy(*own, of, more), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------- any bytes


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_whatever_the_bytes_are_it_is_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Sound frames around damaged messages: accepted only where protobuf reads the same."""
    payload = bytearray(data.draw(EXAMPLES | st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 3)) if payload else 0):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + 1] = data.draw(st.binary(max_size=2))
        payload = payload or bytearray(1)
    raw = t.record(bytes(payload))
    if data.draw(st.booleans()):
        raw += data.draw(st.binary(max_size=20))
    path = tmp_path_factory.getbasetemp() / "fuzz.tfrecord"
    path.write_bytes(raw)
    layout = data.draw(st.sampled_from(["example", "elwc"]))
    options = {"indices": "i", "keep": "n:float64", "missing": "zero", "n_features": 100, "layout": layout}
    message = ""
    try:
        found, columns = read(open_source(path, **options))
    except SourceError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
    elif layout == "example":
        features = e.features_of(bytes(payload))
        ids = np.zeros((1, 100))
        np.add.at(ids[0], np.array(features.get(b"i", []), int), 1)
        np.testing.assert_array_equal(found.toarray(), ids)
        np.testing.assert_array_equal(columns["n"], np.array(features.get(b"n") or [np.nan], float))


# ---------------------------------------------------------------------------------------------------------- memory

PEAK = """
import sys
from sparsestore.sources.registry import open_source
max_bytes = 4 << 20
options = dict(option.split("=") for option in sys.argv[3].split())
source, warm = open_source(sys.argv[1], **options), open_source(sys.argv[2], **options)
"""
MEMORY: dict[str, tuple[bytes, str]] = {
    "sparse": (
        t.record(t.example({"i": list(range(20_000, 20_050)), "v": [0.5] * 50, "y": 1})),
        "indices=i values=v label=y",
    ),
    "small_ids": (t.record(t.example({"i": list(range(127, -1, -1)) * 8})), "indices=i"),
    "rows_of_nothing": (t.record(t.message(1, t.entry("i", b""))), "indices=i"),
    "lists": (
        t.record(t.elwc([{"v": 1.0}] * 100, {"q": [1.0] * 500, "text": "x" * 1000})),
        "layout=elwc features=v,context.q keep=context.text",
    ),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "sparse")) for kind in MEMORY])
def test_memory_is_bounded_and_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    one, options = MEMORY[kind]
    end = t.tfrecord([{"i": [0]}]) if kind == "rows_of_nothing" else b""  # a width
    (tmp_path / "warm.tfrecord").write_bytes(one * 50 + end)
    peaks = []
    for mib in (4, 40):
        (tmp_path / "x.tfrecord").write_bytes(one * ((mib << 20) // len(one)) + end)
        peaks.append(peak_of_reading(PEAK, tmp_path / "x.tfrecord", tmp_path / "warm.tfrecord", options))
    assert max(peaks) <= (4 << 20) + (16 << 20)
    assert peaks[1] <= peaks[0] + (4 << 20)
