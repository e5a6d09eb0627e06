"""gzip by isal and by Python's own zlib: the same text, and the same errors, whatever was done to the file."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsestore.errors import SourceError
from sparsestore.sources.text import TextFile

TEXT = b"".join(b"%d %d:0.%d\n" % (k % 2, k % 90 + 1, k * k % 997) for k in range(80))


@pytest.fixture(params=["isal", "zlib"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
    return str(request.param)


def text_of(path: Path, data: bytes, piece_bytes: int = 1 << 20) -> bytes:
    path.write_bytes(data)
    return b"".join(piece.text.tobytes() for piece in TextFile(path).pieces(piece_bytes, 1 << 20))


def test_members_and_zeros_are_one_text(decoder: str, tmp_path: Path) -> None:
    named = gzip.compress(TEXT[:100], mtime=0)
    named = named[:3] + b"\x08" + named[4:10] + b"name.svm\0" + named[10:]
    data = named + gzip.compress(b"") + gzip.compress(TEXT[100:], 1) + bytes(1000)
    for piece_bytes in (7, 100, 1 << 20):
        assert text_of(tmp_path / "x.gz", data, piece_bytes) == TEXT


def test_a_file_cut_anywhere_is_refused(decoder: str, tmp_path: Path) -> None:
    data = gzip.compress(TEXT, mtime=0)
    for cut in range(len(data)):
        with pytest.raises(
            SourceError, match=rf"x\.gz: cut short: the file ends at byte {cut}, before its \.gz data do"
        ):
            text_of(tmp_path / "x.gz", data[:cut])


def test_no_flipped_bit_changes_the_text(decoder: str, tmp_path: Path) -> None:
    data = gzip.compress(TEXT, mtime=0)
    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            try:
                found = text_of(tmp_path / "x.gz", flipped)
            except SourceError:
                continue
            assert found == TEXT, (at, bit)  # of the time and the system in the header, say


def test_garbage_behind_a_member_is_refused(decoder: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"damaged \.gz data before byte"):
        text_of(tmp_path / "x.gz", gzip.compress(TEXT) + b"garbage that follows")


def test_what_expands_a_thousandfold_comes_in_pieces(decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"1 1:1\n" * 2_000_000))
    sizes = np.array([len(piece.text) for piece in TextFile(path).pieces(1 << 16, 1 << 20)])
    assert sizes.sum() == 12_000_000
    assert sizes.max() <= (1 << 16) + 6  # with the line that was cut before
