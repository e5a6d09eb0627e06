"""Documents of the format: to JSON and back, every problem told at once, and nothing read from outside the store."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsestore.checksum import crc32c
from sparsestore.documents import dump, key_problem, parse_json, seal, unseal
from sparsestore.errors import FormatError
from sparsestore.format import (
    ColumnSchema,
    FeaturesEntry,
    Manifest,
    ObjectEntry,
    PageEntry,
    SegmentDocument,
    SegmentLine,
    column_problem,
    manifest_key,
)
from sparsestore.zarr_format import ArraySpec, Codec

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64"]
COUNTS = st.integers(0, 2**63 - 1)
CRCS = st.integers(0, 2**32 - 1)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: column_problem(name) is None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ENTRIES = st.builds(ObjectEntry, st.lists(NAMES, min_size=1, max_size=4).map("/".join), COUNTS, CRCS)
LINES = st.builds(
    SegmentLine,
    st.uuids().map(lambda name: name.hex),
    st.integers(1, 2**40),
    st.integers(0, 2**50),
    CRCS,
    st.booleans(),
    st.integers(0, 2**62),
)
SCHEMAS = st.just(ColumnSchema("string")) | st.builds(
    ColumnSchema,
    st.sampled_from(DTYPES),
    st.one_of(st.just(()), st.integers(1, 2**31).map(lambda k: (k,))),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    lines = tuple(draw(st.lists(LINES, max_size=4)))
    pages = tuple(PageEntry(draw(ENTRIES), draw(st.integers(1, 10**6))) for _ in range(draw(st.integers(0, 2))))
    rows, nnz = sum(line.rows for line in lines), sum(line.nnz for line in lines)
    return Manifest(
        version=draw(st.integers(1, 2**62)),
        parent=draw(st.none() | st.integers(1, 2**62)),
        rows=draw(COUNTS) if pages else rows,
        n_features=draw(COUNTS),
        nnz=draw(COUNTS) if pages else nnz,
        dtype=draw(st.sampled_from(DTYPES)),
        columns=draw(st.dictionaries(NAMES, SCHEMAS, max_size=3)),
        root=draw(ENTRIES),
        segments=lines,
        pages=pages,
        features=draw(st.none() | st.builds(FeaturesEntry, NAMES, CRCS)),
        shuffled=draw(st.none() | st.just({"method": "exact", "seed": 0})),
        profile=draw(st.sampled_from(["raw", "compact"])),
        created="2026-01-01T00:00:00+00:00",
        attrs=draw(st.dictionaries(st.text(), JSON, max_size=3)),
    )


ROOT_ENTRY = ObjectEntry("zarr.json", 100, 0)


def a_manifest(**changes: Any) -> dict[str, Any]:
    line = SegmentLine("ab", 3, 5, 1)
    manifest = Manifest(1, None, 3, 4, 5, "float32", {"y": ColumnSchema("int64")}, ROOT_ENTRY, (line,))
    return {**manifest.to_document(), **changes}


def an_array(**changes: Any) -> dict[str, Any]:
    return {**ArraySpec((10, 2), "float32", 4, 8, Codec("blosc")).to_document(), **changes}


# --------------------------------------------------------------------------------------------------- round trips


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_a_manifest_survives_json(manifest: Manifest) -> None:
    payload = seal(manifest.to_document(), crc32c)
    assert unseal(payload, crc32c)
    assert Manifest.from_document(parse_json(payload, "m"), "m") == manifest


@given(
    st.builds(
        SegmentDocument,
        st.integers(1, 2**63 - 1),
        COUNTS,
        COUNTS,
        st.sampled_from(["uint16", "int32", "int64"]),
        st.sampled_from(sorted({*DTYPES} - {"bool", "float16"})),
        st.booleans(),
        COUNTS,
        st.sampled_from(["raw", "compact"]),
        st.lists(ENTRIES, max_size=4, unique_by=lambda entry: entry.key).map(tuple),
    )
)
@settings(max_examples=60, deadline=None)
def test_a_segment_document_survives_json(document: SegmentDocument) -> None:
    assert SegmentDocument.from_document(parse_json(dump(document.to_document()), "s"), "s") == document


CODECS = [
    Codec(),
    Codec("zstd", clevel=3),
    Codec("blosc", "lz4", 5, "bitshuffle"),
    Codec("blosc", "zstd", 9, "noshuffle"),
]


@given(
    n=COUNTS,
    tail=st.one_of(st.just(()), st.integers(1, 100).map(lambda k: (k,))),
    chunk=st.integers(0, 16).map(lambda e: 1 << e),
    per_shard=st.integers(0, 8).map(lambda e: 1 << e),
    codec=st.sampled_from(CODECS),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_an_array_document_survives_json(
    n: int, tail: tuple[int, ...], chunk: int, per_shard: int, codec: Codec, dtype: str, data: st.DataObject
) -> None:
    if dtype == "bool":
        fill: Any = data.draw(st.booleans())
    elif dtype in INTEGERS:
        info = np.iinfo(dtype)
        fill = data.draw(st.integers(int(info.min), int(info.max)))
    else:
        fill = data.draw(st.floats(width=int(dtype[5:]), allow_nan=False))
    if codec.name != "blosc":
        codec = Codec(codec.name, clevel=codec.clevel)
    spec = ArraySpec((n, *tail), dtype, chunk, chunk * per_shard, codec, fill, {"note": [1, None]})
    assert ArraySpec.from_document(parse_json(dump(spec.to_document()), "a"), "a") == spec


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0])
def test_a_fill_value_that_json_lacks_survives(value: float) -> None:
    document = parse_json(dump(ArraySpec((3,), "float32", 1, 4, fill_value=value).to_document()), "a")
    found = ArraySpec.from_document(document, "a").fill_value
    assert np.float64(found).tobytes() == np.float64(value).tobytes()


def test_a_manifest_of_two_thousand_segments_stays_short() -> None:
    lines = tuple(SegmentLine(f"{i:032x}", 1, 0, 0) for i in range(2000))
    manifest = Manifest(1, None, 2000, 0, 0, "float32", {}, ROOT_ENTRY, lines)
    assert len(dump(manifest.to_document())) < 150_000


def test_manifest_keys_sort_as_their_versions_do() -> None:
    assert manifest_key(7) == "versions/00000007.json"
    assert manifest_key(123456789) == "versions/123456789.json"


# ------------------------------------------------------------------------------------------------------ problems


def test_every_problem_of_a_manifest_is_told_at_once_with_its_path() -> None:
    document = a_manifest(
        shape=[-1, True],
        nnz="5",
        dtype=["float32"],
        columns={"a/b": {"dtype": "complex64", "shape": [0]}},
        features=["../x", "00000001"],
        pages=[["versions/pages/p.json", 5, "XYZ", 0]],
        segments=[["ab", 0, 5, "00000001", False, 0], ["too", "short"], None],
        profile=None,
        attrs=[],
    )
    with pytest.raises(FormatError) as error:
        Manifest.from_document(document, "store: versions/1.json")
    text = str(error.value)
    assert text.startswith("store: versions/1.json is not valid:\n")
    for path in (
        "shape[0]: found -1",
        "shape[1]: found True",
        "nnz: found '5'",
        "dtype: found ['float32']",
        "columns: found 'a/b'",
        "columns.a/b.dtype: found 'complex64'",
        "columns.a/b.shape: found 0",
        "features[0]: found '../x'",
        "pages[0][2]: found 'XYZ'",
        "pages[0][3]: found 0",
        "segments[0][1]: found 0",
        "segments[1]: found ['too', 'short']",
        "segments[2]: found 'NoneType'",
        "profile: found None",
        "attrs: found 'list'",
    ):
        assert path in text, text


def test_a_column_of_several_texts_a_row_is_refused() -> None:
    document = a_manifest(columns={"t": {"dtype": "string", "shape": [2]}, "y": {"dtype": "int8", "shape": [2]}})
    with pytest.raises(FormatError, match=r"columns.t.shape: found \[2\], expected \[\], as text has one value a row$"):
        Manifest.from_document(document, "m")


def test_every_problem_of_a_segment_document_is_told_at_once() -> None:
    with pytest.raises(FormatError, match=r"(?s)format: found 2.*rows: found 0.*data_dtype.*objects\[0\]\[0\]"):
        SegmentDocument.from_document(
            {
                "format": 2,
                "rows": 0,
                "nnz": 1,
                "n_features": 1,
                "data_dtype": {},
                "objects": [["/etc/passwd", 1, "0" * 8]],
            },
            "s",
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices_dtype": "float32"}, "indices_dtype: found 'float32', expected a dtype of whole numbers"),
        ({"indices_dtype": "bool"}, "indices_dtype: found 'bool'"),
        ({"data_dtype": "bool"}, "data_dtype: found 'bool', expected a wider one: bool stands as uint8"),
        ({"data_dtype": "float16"}, "data_dtype: found 'float16', expected a wider one"),
    ],
)
def test_dtypes_that_no_matrix_is_stored_in_are_refused(changes: dict[str, Any], message: str) -> None:
    document = SegmentDocument(3, 2, 4, "uint16", "float32", False, 1, "raw", ()).to_document()
    with pytest.raises(FormatError, match=message):
        SegmentDocument.from_document(document | changes, "s")


def test_every_problem_of_an_array_is_told_at_once() -> None:
    document = an_array(
        shape=[10, "2"],
        data_type={"name": "numpy.datetime64"},
        chunk_key_encoding={"name": "v2"},
        fill_value="red",
    )
    with pytest.raises(FormatError, match=r"(?s)shape: .*data_type: .*chunk_key_encoding: .*fill_value: found 'red'"):
        ArraySpec.from_document(document, "a")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 300), ("uint8", 1.0), ("int64", None), ("bool", 0), ("float32", None), ("float32", True), ("string", 3)],
)
def test_a_fill_value_of_another_type_is_refused(dtype: str, value: Any) -> None:
    document = ArraySpec((3,), dtype, 1, 4, fill_value="" if dtype == "string" else 0).to_document()
    with pytest.raises(FormatError, match="fill_value"):
        ArraySpec.from_document({**document, "fill_value": value}, "a")


@pytest.mark.parametrize(
    "codecs",
    [None, [], [{"name": "bytes"}], ["sharding_indexed"], [{"name": "sharding_indexed"}], [{"name": "crc32c"}] * 2],
)
def test_an_array_that_is_not_sharded_is_refused(codecs: Any) -> None:
    with pytest.raises(FormatError, match="codecs"):
        ArraySpec.from_document(an_array(codecs=codecs), "a")


def test_an_array_with_a_gzip_codec_is_refused() -> None:
    document = an_array()
    document["codecs"][0]["configuration"]["codecs"][1] = {"name": "gzip", "configuration": {"level": 5}}
    with pytest.raises(
        FormatError, match=r"found \['bytes', 'gzip'\], expected 'bytes', then one of: nothing, 'blosc', 'zstd'"
    ):
        ArraySpec.from_document(document, "a")


@pytest.mark.parametrize("cname", ["lz4", "zstd"])
def test_strings_with_a_codec_of_numbers_are_refused(cname: str) -> None:
    document = ArraySpec((3,), "string", 1, 4, Codec("blosc", cname), "").to_document()
    with pytest.raises(
        FormatError, match=r"found \['vlen-utf8', 'blosc'\], expected 'vlen-utf8', then one of: nothing, 'zstd'"
    ):
        ArraySpec.from_document(document, "a")


def test_strings_have_one_axis() -> None:
    document = ArraySpec((3, 2), "string", 1, 4, Codec("zstd"), "").to_document()
    with pytest.raises(FormatError, match=r"shape: found \[3, 2\], expected one axis, as elements are strings"):
        ArraySpec.from_document(document, "a")


def test_a_chunk_that_does_not_divide_its_shard_is_refused() -> None:
    document = an_array()
    document["codecs"][0]["configuration"]["chunk_shape"] = [3, 2]
    with pytest.raises(FormatError, match="found 3, expected a divisor of the shard length 8"):
        ArraySpec.from_document(document, "a")


@pytest.mark.parametrize("found", [2, None, "1", 99])
def test_an_unknown_format_names_both_numbers_and_the_way_out(found: Any) -> None:
    with pytest.raises(FormatError, match=f"format {found!r} is not known .* reads format 1: upgrade sparsestore"):
        Manifest.from_document(a_manifest(format=found), "m")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ArraySpec((100_000,), "uint16", 1, 32_768), ""),
        (ArraySpec((100_000,), "float64", 1024, 8192), ""),
        (ArraySpec((16_384,), "uint16", 8, 16_384), ""),
        (ArraySpec((16_385,), "uint16", 8, 16_384), "2 shards hold 32768 bytes of chunks each, expected one, or"),
        (ArraySpec((100_000,), "uint8", 8, 81_920), "2 shards hold 81920 bytes of chunks each"),
        (ArraySpec((0,), "uint16", 1, 1), ""),
    ],
)
def test_shards_that_are_mapped_end_where_pages_do(spec: ArraySpec, reason: str) -> None:
    assert spec.border_problem.startswith(reason)
    assert bool(spec.border_problem) == bool(reason)


def test_a_segment_of_one_value_has_no_others() -> None:
    """Chunks of values that nobody would read are a sign that one of the two is wrong."""
    objects = (ObjectEntry("X/data/c/0", 100, 7), ObjectEntry("X/data/zarr.json", 100, 7))
    document = SegmentDocument(20, 45, 50, "uint16", "uint8", False, 4, "raw", objects).to_document()
    assert SegmentDocument.from_document(document, "s").objects == objects
    with pytest.raises(FormatError, match=r"objects: found .X/data/c/0., expected no chunk of X/data"):
        SegmentDocument.from_document({**document, "constant": True}, "s")


def test_segments_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(FormatError, match=r"segments: found \(3, 5\), expected rows and nnz that add up to \(4, 5\)"):
        Manifest.from_document(a_manifest(shape=[4, 4]), "m")


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_a_document_of_anything_is_a_format_error(value: Any) -> None:
    for field in (None, *a_manifest()):
        document = value if field is None else a_manifest(**{field: value})
        if isinstance(document, dict):
            with contextlib.suppress(FormatError):
                Manifest.from_document(document, "m")


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_an_array_document_of_anything_is_a_format_error(value: Any) -> None:
    for field in an_array():
        with contextlib.suppress(FormatError):
            ArraySpec.from_document(an_array(**{field: value}), "a")


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_bytes_that_are_no_json_object_are_a_format_error(payload: bytes) -> None:
    with pytest.raises(FormatError, match="the document"):
        parse_json(payload, "the document")


def test_a_key_that_stands_twice_among_many_is_named_at_once() -> None:
    keys = [*range(50_000), 49_999]
    payload = ("{" + ",".join(f'"{key}":1' for key in keys) + "}").encode()
    start = time.process_time()
    with pytest.raises(FormatError, match="the key '49999' stands there twice"):
        parse_json(payload, "the document")
    assert time.process_time() - start < 5  # a search for each key took 16 s


# ---------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a/./b", "a\\b", "a\x00b", "a\nb", "a/", None, 3, ["a"]]
)
def test_a_key_that_leaves_the_store_is_refused(key: Any) -> None:
    assert key_problem(key) is not None
    entry = ["x", 0, "0" * 8]
    entry[0] = key
    with pytest.raises(FormatError, match=r"objects\[0\]\[0\]"):
        SegmentDocument.from_document({"objects": [entry]}, "s")


@pytest.mark.parametrize("key", ["X/indices/c/0", "columns/user id/zarr.json", "columns/größe/c/0", "a..b", "..a"])
def test_a_key_inside_the_store_is_taken(key: str) -> None:
    assert key_problem(key) is None


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "__x", "y.mask", "zarr.json", "a\x00", "a\\b", 3, "x" * 201, "\ud800"]
)
def test_a_column_name_that_can_not_be_a_folder_is_refused(name: Any) -> None:
    assert "column name" in str(column_problem(name))


@pytest.mark.parametrize("name", ["y", "größe", "user id", "a.b", "nnz", "x" * 200, "C:"])
def test_a_plain_column_name_is_taken(name: str) -> None:
    assert column_problem(name) is None


# ---------------------------------------------------------------------------------------------------------- seal


def test_every_flipped_bit_breaks_the_seal() -> None:
    payload = seal(a_manifest(), crc32c)
    for at in range(len(payload)):
        for bit in (1, 0x20, 0x80):
            damaged = bytearray(payload)
            damaged[at] ^= bit
            assert not unseal(bytes(damaged), crc32c), (at, bit)


def test_every_cut_breaks_the_seal() -> None:
    payload = seal(a_manifest(), crc32c)
    assert not any(unseal(payload[:stop], crc32c) for stop in range(len(payload)))


def test_a_sealed_document_is_plain_json_with_its_checksum_first() -> None:
    assert next(iter(json.loads(seal(a_manifest(), crc32c)))) == "crc32c"
