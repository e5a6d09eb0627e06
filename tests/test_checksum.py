"""crc32c: the published check values, pieces, and growth by parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsestore.checksum import PIECE, crc32c, extend_crc32c, follow_crc32c, piece_crc32c


def plain_crc32c(payload: bytes) -> int:
    """The reflected polynomial 0x1EDC6F41 of RFC 3720, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in payload:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


READ_10 = "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
RFC_3720 = {
    "empty": (b"", 0),
    "digits": (b"123456789", 0xE3069283),
    "zeros": (bytes(32), 0x8A9136AA),
    "ones": (b"\xff" * 32, 0x62A8AB43),
    "ascending": (bytes(range(32)), 0x46DD794E),
    "descending": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "iSCSI read": (bytes.fromhex(READ_10), 0xD9963A56),
}
"""Check values of appendix B.4, the digits' of the catalogues of checksums."""


@pytest.mark.parametrize(("payload", "expected"), RFC_3720.values(), ids=RFC_3720)
def test_the_values_of_rfc_3720(payload: bytes, expected: int) -> None:
    assert crc32c(payload) == expected == plain_crc32c(payload)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_checksum_grows_by_parts(head: bytes, tail: bytes) -> None:
    assert extend_crc32c(crc32c(head), tail) == crc32c(head + tail) == plain_crc32c(head + tail)


@pytest.mark.parametrize("n", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_each_piece_has_its_own_checksum(n: int) -> None:
    payload = np.random.default_rng(0).integers(0, 256, n, np.uint8)
    expected = [crc32c(payload[at : at + PIECE].tobytes()) for at in range(0, n, PIECE)]
    assert piece_crc32c(payload).tolist() == expected
    assert piece_crc32c(payload).dtype == np.uint32


@given(st.binary(max_size=200), st.integers(0, 5), st.integers(0, 2**32))
def test_a_checksum_goes_on_over_pieces_of_which_the_checksums_are_known(head: bytes, n: int, seed: int) -> None:
    payload = np.random.default_rng(seed).integers(0, 256, n * PIECE, np.uint8)
    found = follow_crc32c(crc32c(head), piece_crc32c(payload))
    assert found == crc32c(head + payload.tobytes())


def test_an_array_that_may_not_be_written_is_read_without_a_copy() -> None:
    payload = np.arange(100, dtype=np.uint8)
    payload.flags.writeable = False
    assert crc32c(payload) == crc32c(payload.tobytes())
