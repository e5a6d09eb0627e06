"""Decisions about the disk: the smallest exact dtypes, constants, lengths of chunks and shards, sizes in words."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sparsestore.layout import (
    CHUNK,
    CHUNK_BYTES,
    SHARD,
    ValueRange,
    chunk_and_shard,
    codec_for,
    indices_dtype,
    parse_bytes,
    rows_of_chunk,
)

Array = NDArray[Any]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 255.0, 256.0, -129.0, 65535.0, 2.0**31, 2.0**53 + 2, 1e300]


def float_elements(width: int) -> st.SearchStrategy[float]:
    special = [float(np.float64(value).astype(f"f{width // 8}")) for value in SPECIAL if value < 1e4 or width == 64]
    return (
        st.floats(width=width) | st.integers(-300, 70000 if width > 16 else 2000).map(float) | st.sampled_from(special)
    )  # type: ignore[arg-type]


@st.composite
def arrays(draw: st.DrawFn, min_size: int = 0) -> Array:
    dtype = draw(st.sampled_from(["bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]))
    elements = None
    if dtype[0] == "f":
        elements = float_elements(8 * int(dtype[1]))
    elif dtype[0] in "iu":
        info = np.iinfo(dtype)
        near = [value for value in (0, 1, 255, 256, 2**53 + 1, int(info.min), int(info.max)) if value <= info.max]
        elements = st.sampled_from(near) | st.integers(int(info.min), int(info.max))
    return draw(hnp.arrays(dtype, st.integers(min_size, 6), elements=elements, fill=st.nothing()))


def bits(values: Array) -> bytes:
    """What tells -0.0 from 0.0, but not one NaN from another."""
    return np.where(np.isnan(values), np.nan, values).tobytes() if values.dtype.kind == "f" else values.tobytes()


def smaller(dtype: str) -> list[str]:
    size = np.dtype(dtype).itemsize
    return [f"{kind}{8 * n}" for n in (1, 2, 4, 8) if n < size for kind in ("uint", "int")]


@given(arrays())
@settings(max_examples=400, deadline=None)
def test_the_stored_dtype_gives_every_value_back(values: Array) -> None:
    stored = ValueRange.of(values).stored_dtype()
    assert bits(values.astype(stored).astype(values.dtype)) == bits(values)


@given(arrays(min_size=1))
@settings(max_examples=400, deadline=None)
def test_no_smaller_integer_dtype_would_be_exact(values: Array) -> None:
    stored = ValueRange.of(values).stored_dtype()
    for dtype in smaller(stored):
        with np.errstate(invalid="ignore", over="ignore"):
            back = values.astype(dtype).astype(values.dtype)
        wrapped = values.dtype.kind in "iu" and bool(((values.astype(dtype) < 0) != (values < 0)).any())
        assert wrapped or bits(back) != bits(values), dtype


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([True, False]), "uint8"),
        (np.array([0, 255], np.int64), "uint8"),
        (np.array([-1, 127], np.int64), "int8"),
        (np.array([-1, 128], np.int64), "int16"),
        (np.array([2**53 + 1], np.int64), "int64"),
        (np.array([2**53 + 1], np.uint64), "uint64"),
        (np.array([2**64 - 1], np.uint64), "uint64"),
        (np.array([1.0, 3.0], np.float32), "uint8"),
        (np.array([1.5], np.float32), "float32"),
        (np.array([70000.0], np.float32), "float32"),
        (np.array([70000.0], np.float64), "uint32"),
        (np.array([2.0**40], np.float64), "float64"),
        (np.array([np.nan, 1.0]), "float64"),
        (np.array([np.inf]), "float64"),
        (np.array([-0.0]), "float64"),
        (np.array([1.5], np.float16), "float32"),
        (np.array([300.0], np.float16), "uint16"),
        (np.array([], np.float64), "float64"),
    ],
    ids=lambda value: str(value.dtype) + str(value.tolist()) if isinstance(value, np.ndarray) else value,
)
def test_stored_dtypes(values: Array, expected: str) -> None:
    assert ValueRange.of(values).stored_dtype() == expected


def test_the_end_of_a_long_array_counts() -> None:
    values = np.ones(3 * CHUNK + 5, np.float32)
    values[-1] = 0.5
    assert ValueRange.of(values).stored_dtype() == "float32"
    values[-1] = np.nan
    assert np.isnan(ValueRange.of(values).high)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.0], True),
        ([0.25], True),
        ([0.0, 0.0], True),
        ([0.0, -0.0], False),
        ([-0.0], False),
        ([1.0, 2.0], False),
        ([np.nan], False),
        ([1.0, np.nan], False),
        ([np.inf], False),
        ([], False),
    ],
    ids=str,
)
def test_values_are_constant_only_where_one_can_stand_for_all(values: list[float], expected: bool) -> None:
    assert ValueRange.of(np.array(values)).constant is expected


@given(st.lists(arrays(), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_union_does_not_depend_on_the_order(parts: list[Array], random: Any) -> None:
    ranges = [ValueRange.of(part) for part in parts]
    for other in ranges[1:]:
        one, two = ranges[0].union(other), other.union(ranges[0])
        assert one.dtype == two.dtype
        assert one.stored_dtype() == two.stored_dtype()
    # numpy's common dtype of more than two may depend on their order, what was found of the values may not
    shuffled = random.sample(ranges, len(ranges))
    found = [functools.reduce(ValueRange.union, order) for order in (ranges, shuffled)]
    # + 0.0: which zero a bound is may depend on it too; that one of them was negative stands in `whole`
    assert len({(r.whole, str(r.low + 0.0), str(r.high + 0.0), r.count, r.constant) for r in found}) == 1


@given(arrays(), arrays())
@settings(max_examples=300, deadline=None)
def test_the_union_stores_both_parts_in_their_common_dtype(a: Array, b: Array) -> None:
    both = ValueRange.of(a).union(ValueRange.of(b))
    common = np.result_type(a, b)
    for part in (a, b):
        expected = part.astype(common)
        assert bits(part.astype(both.stored_dtype()).astype(common)) == bits(expected)
    if both.constant:
        assert len({bits(part[i : i + 1].astype(common)) for part in (a, b) for i in range(len(part))}) == 1


@given(arrays(), arrays(min_size=1))
@settings(max_examples=300, deadline=None)
def test_what_fits_a_segment_comes_back_from_it(first: Array, block: Array) -> None:
    held, new = ValueRange.of(first), ValueRange.of(block)
    stored = held.stored_dtype()
    constant = np.dtype(stored).type(held.low).item() if held.constant else None
    if new.fits(stored, constant):
        common = np.result_type(first, block)
        kept = block.astype(stored) if constant is None else np.full(len(block), constant, stored)
        assert bits(kept.astype(common)) == bits(block.astype(common))


@given(arrays())
@settings(deadline=None)
def test_a_block_fits_the_segment_that_it_opens(values: Array) -> None:
    found = ValueRange.of(values)
    constant = np.dtype(found.stored_dtype()).type(found.low).item() if found.constant else None
    assert found.fits(found.stored_dtype(), constant)


@pytest.mark.parametrize(
    ("values", "stored", "constant", "expected"),
    [
        (np.array([256]), "uint8", None, False),
        (np.array([-1]), "uint8", None, False),
        (np.array([7.0]), "uint8", None, True),
        (np.array([7.5]), "uint8", None, False),
        (np.array([-0.0]), "uint8", None, False),
        (np.array([np.nan]), "int64", None, False),
        (np.array([np.nan]), "float32", None, False),
        (np.array([np.nan], np.float32), "float32", None, True),
        (np.array([0.1]), "float32", None, False),
        (np.array([1.0, 1.0]), "uint8", 1, True),
        (np.array([1.0, 2.0]), "uint8", 1, False),
        (np.array([-0.0]), "uint8", 0, False),
        (np.array([2**53 + 1]), "int64", 2**53, False),
        (np.array([], np.float64), "uint8", 1, True),
    ],
    ids=str,
)
def test_fits(values: Array, stored: str, constant: float | None, expected: bool) -> None:
    assert ValueRange.of(values).fits(stored, constant) is expected


# -------------------------------------------------------------------------------------------------------- lengths


@given(st.integers(0, 2**40), st.integers(0, 16), st.integers(0, 8))
def test_chunks_and_shards_are_powers_of_two_no_longer_than_needed(n: int, chunk_bits: int, shard_bits: int) -> None:
    limits = (1 << chunk_bits, 1 << chunk_bits + shard_bits)
    chunk, shard = chunk_and_shard(n, *limits)
    assert chunk & (chunk - 1) == 0
    assert shard & (shard - 1) == 0
    assert shard % chunk == 0
    assert chunk <= limits[0]
    assert shard <= limits[1]
    assert shard < max(2 * n, 2)
    assert shard == limits[1] or shard >= n


@given(most=st.integers(0, 16).map(lambda e: 1 << e), row_bytes=st.integers(0, 1 << 23))
def test_a_chunk_has_two_mebibytes_or_one_row_at_most(most: int, row_bytes: int) -> None:
    rows = rows_of_chunk(most, row_bytes)
    assert rows & (rows - 1) == 0
    assert 1 <= rows <= most
    assert rows * row_bytes <= CHUNK_BYTES or rows == 1
    assert rows == most or 2 * rows * row_bytes > CHUNK_BYTES


def test_the_limits_are_those_of_the_format() -> None:
    assert chunk_and_shard(2**40) == (CHUNK, SHARD) == (65536, 16777216)


@pytest.mark.parametrize(
    ("n_features", "expected"),
    [(0, "uint16"), (65536, "uint16"), (65537, "int32"), (2**31, "int32"), (2**31 + 1, "int64")],
)
def test_indices_are_as_narrow_as_the_width_allows(n_features: int, expected: str) -> None:
    assert indices_dtype(n_features) == expected
    assert n_features - 1 <= np.iinfo(expected).max


def test_only_the_raw_matrix_is_uncompressed() -> None:
    assert {codec_for(role, "raw").name for role in ("indices", "data")} == {"none"}
    assert {codec_for(role, "compact").name for role in ("indices", "data")} == {"blosc"}
    assert {codec_for(role, "raw").name for role in ("indptr", "column")} == {"blosc"}
    assert codec_for("string", "raw").name == "zstd"


# ---------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1, 1),
        (np.int64(5), 5),
        ("7", 7),
        ("10 b", 10),
        ("1KiB", 1024),
        ("1kb", 1000),
        ("1k", 1024),
        (" 1.5 GiB ", 1610612736),
        ("2TB", 2 * 10**12),
        ("512 MiB", 512 << 20),
    ],
)
def test_sizes_in_words(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("size", ["", "GB", "1 XB", "-1GB", "1e9", "1,5GB", True, None, 1.5, "1 GB 2", "nan"])
def test_what_is_no_size_is_told(size: Any) -> None:
    with pytest.raises(ValueError, match=r"memory is .*, expected bytes: an int, or a string such as '512MiB'"):
        parse_bytes(size, "memory")


@pytest.mark.parametrize("size", [0, -1, "0GB", "0.1b"])
def test_a_size_must_be_positive(size: Any) -> None:
    with pytest.raises(ValueError, match="expected a positive number of bytes"):
        parse_bytes(size)
