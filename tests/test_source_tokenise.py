"""The compiled tokenizers agree with their plain twins, and with ``float``."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsestore.kernels import tokenise

SVMLIGHT = [
    *(b"1 2 : , # - + . e q e5 nan -inf qid: qid:3 0:1 1.5 1_0 .5 5. 1e400 5e-324 0x1 1e".split()),
    *(b" ", b"\n", b"\t", b"\r\n", b"\x0b", b"\n1 2:3 5:", b" 3:4", b" 7:0.25", b"\n-1", b"9" * 18, b"1" * 21),
]
ENTRIES = [*(b"1 2 0 - % # 1.5 e5 nan 1_0".split()), b" ", b"\n", b"\t", b"\r\n", b"\n1 1 2.5", b"\n2 3", b"9" * 19]


def texts(pieces: list[bytes]) -> st.SearchStrategy[np.ndarray]:
    joined = st.lists(st.sampled_from(pieces), max_size=14).map(lambda parts: b"".join(parts) + b"\n")
    return joined.map(lambda text: np.frombuffer(text, np.uint8))


def assert_equal(found, twin) -> None:
    assert (found.status, found.offset) == (twin.status, twin.offset)
    if found.status == tokenise.OK:
        for name, a, b in zip(found._fields, found, twin, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None), name


@settings(max_examples=1500, deadline=None)
@given(
    texts(SVMLIGHT),
    st.sampled_from([0, 1]),
    st.sampled_from([5, 2**31 - 2, 2**40]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 2]),
)
def test_svmlight_agrees_with_its_twin(text, base, limit, ascending, multilabel, qid):
    options = {"base": base, "limit": limit, "ascending": ascending, "multilabel": multilabel, "qid": qid}
    assert_equal(tokenise.svmlight(text, **options), tokenise.svmlight_numpy(text, **options))


@settings(max_examples=800, deadline=None)
@given(texts(ENTRIES), st.sampled_from([0, 1, 2, 100]), st.booleans(), st.booleans())
def test_entries_agree_with_their_twin(text, most, indexed, valued):
    options = {"most": most, "indexed": indexed, "valued": valued or not indexed}
    assert_equal(tokenise.entries(text, 3, 12, **options), tokenise.entries_numpy(text, 3, 12, **options))


def read_one(token: str) -> tokenise.Lines:
    return tokenise.svmlight(np.frombuffer(f"0 1:{token}\n".encode(), np.uint8))


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@settings(max_examples=2000, deadline=None)
@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False).map(repr),
        st.floats(allow_nan=False, allow_infinity=False).map("{:.16g}".format),
        st.floats(-1, 1).map("{:.17f}".format),
        st.tuples(st.integers(0, 10**25), st.integers(-345, 280)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
    )
)
@example("9007199254740993")  # half-way between two floats
@example("9007199254740992e22")
@example("8.988465674311580e307")
@example("2.2250738585072011e-308")  # the number that hung other parsers
@example("-0.0")
@example("0e999999")
@example("1.00000000000000011102230246251565404236316680908203125")  # half-way, decided by the 53rd digit
def test_numbers_equal_python_floats(token):
    wanted = float(token)
    if math.isinf(wanted):
        assert read_one(token).status == tokenise.BAD_VALUE
    else:
        assert bits(float(read_one(token).values[0])) == bits(wanted)


def test_powers_of_five_are_those_of_lemire():
    table = tokenise._FIVES
    assert table[342].tolist() == [2**63, 0]
    assert table[343].tolist() == [5 << 61, 0]
    assert table[341].tolist() == [0xCCCCCCCCCCCCCCCC, 0xCCCCCCCCCCCCCCCD]


def test_more_odd_numbers_than_there_is_room_for_are_read_too():
    n = 5000
    text = b"".join(b"1 1:nan 2:1e-310\n" for _ in range(n))
    lines = tokenise.svmlight(np.frombuffer(text, np.uint8))
    assert np.isnan(lines.values[::2]).all()
    assert (lines.values[1::2] == 1e-310).all()


@pytest.mark.parametrize("token", ["1_000", "0x10", "1e", ".", "+", "--1", "1.2.3", "\u0661", "1" * 70_000 + "z"])
def test_what_is_no_number_is_refused(token):
    lines = tokenise.svmlight(np.frombuffer(f"0 1:2 2:{token}\n".encode(), np.uint8))
    assert (lines.status, lines.offset) == (tokenise.BAD_VALUE, 8)


def test_the_first_offence_is_told_even_if_it_is_found_last():
    lines = tokenise.svmlight(np.frombuffer(b"0 1:x 3:1 2:1\n", np.uint8))
    assert (lines.status, lines.offset) == (tokenise.BAD_VALUE, 4)
