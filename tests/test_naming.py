"""Numbers of texts: the compiled table against a dict, its hashes against their twins and scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsestore.errors import ResourceError
from sparsestore.kernels import naming
from sparsestore.sources.dictionary import BadNameError, Dictionary

KEY = np.uint64(1_234_567_890_123_456_789)
TEXTS = st.lists(st.tuples(st.integers(0, 3), st.text(min_size=1, max_size=20)), max_size=60)


def spans(texts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    stops = np.cumsum([0, *map(len, texts)])
    return np.frombuffer(b"".join(texts) + b"\n", np.uint8), stops[:-1], stops[1:]


@settings(deadline=None)
@given(texts=st.lists(st.binary(max_size=40), max_size=30), field=st.integers(0, 2**31 - 1))
def test_hashes_equal_their_twins(texts: list[bytes], field: int) -> None:
    text, starts, stops = spans(texts)
    fields = np.full(len(texts), field, np.int32)
    found = [np.empty(len(texts), np.uint64) for _ in range(2)]
    naming.hashes(text, starts, stops, fields, KEY, found[0])
    naming.hashes_numpy(text, starts, stops, fields, int(KEY), found[1])
    np.testing.assert_array_equal(*found)


@settings(deadline=None)
@given(texts=st.lists(st.binary(max_size=40), max_size=30), prefix=st.binary(max_size=5))
def test_murmur_equals_its_twin_and_scikit_learn(texts: list[bytes], prefix: bytes) -> None:
    utils = pytest.importorskip("sklearn.utils")
    before = np.frombuffer(prefix, np.uint8)
    text, starts, stops = spans(texts)
    found = [np.empty(len(texts), np.int32) for _ in range(2)]
    naming.murmur(before, text, starts, stops, found[0])
    naming.murmur_numpy(before, text, starts, stops, found[1])
    np.testing.assert_array_equal(*found)
    assert found[0].tolist() == [utils.murmurhash3_32(prefix + each) for each in texts]


@settings(deadline=None)
@given(parts=st.lists(TEXTS, max_size=4), add=st.booleans())
def test_a_dictionary_equals_a_dict(parts: list[list[tuple[int, str]]], add: bool) -> None:
    found, twin = Dictionary("x"), dict[tuple[int, bytes], int]()
    for number, part in enumerate(parts):
        add_these = add or number == 0
        texts = [(field, text.encode()) for field, text in part]
        fields = np.array([field for field, _ in texts], np.int32)
        codes = found.codes(*spans([text for _, text in texts]), fields, add=add_these)
        assert codes.tolist() == naming.look_up_numpy(twin, texts, add_these)
    assert len(found) == len(twin)
    assert [(f, n.encode()) for f, n in zip(found.fields().tolist(), found.names(), strict=True)] == list(twin)
    wanted = [f"{'abcd'[field]}={text.decode()}" for field, text in twin]
    assert list(found.prefixed(["a=", "b=", "c=", "d="])) == wanted


def test_it_grows_to_many_names_and_says_what_it_takes() -> None:
    found = Dictionary("x")
    texts = [f"user {number}".encode() for number in range(200_000)]
    assert found.codes(*spans(texts), 0).tolist() == list(range(200_000))
    assert found.codes(*spans(texts[::-1]), 0).tolist() == list(range(200_000))[::-1]
    assert found.names(7, 9) == ["user 7", "user 8"]
    assert found.nbytes < 200_000 * (11 + 20 + 16) * 1.5
    assert found.codes(*spans(texts[:1]), 1, add=False).tolist() == [-1]


def test_names_given_before_come_first() -> None:
    found = Dictionary("x")
    found.add(["ä", "b"])
    assert found.codes(*spans([b"b", b"c", "ä".encode()]), 0).tolist() == [1, 2, 0]


def test_it_stops_at_its_limit() -> None:
    found = Dictionary("a.csv: field 'user'", max_bytes=1 << 20)
    with pytest.raises(ResourceError, match=r"a\.csv: field 'user': its [\d,]+ different texts take"):
        found.codes(*spans([b"%d" % number for number in range(100_000)]), 0)
    assert found.nbytes <= 1 << 20


BAD: dict[str, Any] = {
    "empty": (b"", "is empty"),
    "long": (b"x" * 1001, "has 1001 bytes, expected at most 1000"),
    "no_text": (b"a\xff", "is no UTF-8 text"),
    "half_a_letter": ("ä".encode()[1:], "is no UTF-8 text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_be_no_name_is_refused_with_its_place(name: str) -> None:
    text, reason = BAD[name]
    with pytest.raises(BadNameError) as caught:
        Dictionary("x").codes(*spans([b"a", "ä".encode()[:1] if name == "half_a_letter" else b"b", text, text]), 0)
    assert (caught.value.reason, caught.value.at) == (reason, 2)
