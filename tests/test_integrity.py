"""verify lists every problem; reading a damaged store is an error that says where, never a wrong value."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import sparsestore as ss


@pytest.fixture(params=["raw", "compact"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = sp.random_array((500, 60), density=0.2, rng=rng, format="csr", dtype=np.float32)
    ss.convert(x, tmp_path / "s.zarr", columns={"y": rng.integers(0, 2, 500)}, profile=request.param)
    ss.open(tmp_path / "s.zarr").append(x[:40], y=np.ones(40, int))
    return tmp_path / "s.zarr"


def segment(path: Path, rows: int) -> Path:
    import json

    for folder in (path / "segments").iterdir():
        if json.loads((folder / "segment.json").read_text())["rows"] == rows:
            return folder
    raise LookupError(rows)


def flip(file: Path, at: int) -> None:
    payload = bytearray(file.read_bytes())
    payload[at] ^= 16
    file.write_bytes(payload)


def test_a_sound_store_has_no_problems(path: Path) -> None:
    assert ss.open(path).verify() == []
    assert ss.open(path).verify(deep=False) == []


def test_a_flipped_bit_is_an_error_that_says_where(path: Path) -> None:
    flip(segment(path, 500) / "X/indices/c/0", 40)
    with pytest.raises(ss.CorruptStoreError, match=r"X/indices/c/0, bytes 0 to \d+ \(version 2, rows 0 to 500\)"):
        ss.open(path)[3]
    assert ss.open(path)[500:].shape == (40, 60)  # the other segment is sound
    (problem,) = ss.open(path).verify()
    assert "X/indices/c/0" in problem
    assert "rows 0 to 500" in problem
    assert ss.open(path).verify(deep=False) == []


def test_every_problem_is_listed(path: Path) -> None:
    folder = segment(path, 500)
    flip(folder / "X/indices/c/0", 3)
    flip(folder / "columns/y/c/0", 3)
    (folder / "stats/nnz/c/0").unlink()
    with (segment(path, 40) / "X/data/c/0").open("ab") as file:
        file.write(b"x")
    problems = ss.open(path).verify()
    assert len(problems) == 4
    assert [p for p in problems if "(rows 500 to 540): it has" in p and "X/data/c/0, bytes 0 to" in p]
    assert [p for p in problems if "(rows 0 to 500): the object is missing" in p and "stats/nnz/c/0" in p]


@pytest.mark.parametrize("kind", ["missing", "short", "folder", "link", "copied"])
def test_an_object_that_is_not_what_was_written_is_an_error(path: Path, kind: str) -> None:
    file = segment(path, 500) / "X/data/c/0"
    other = segment(path, 40) / "X/data/c/0"
    payload = file.read_bytes()
    file.unlink()
    if kind == "short":
        file.write_bytes(payload[:-1])
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        shutil.copy(other, path / "elsewhere")
        file.symlink_to(path / "elsewhere")
    elif kind == "copied":
        shutil.copy(other, file)
    with pytest.raises(ss.CorruptStoreError, match=r"X/data/c/0"):
        ss.open(path)[0]
    assert ss.open(path).verify(deep=False) != []


def test_a_flipped_bit_in_a_manifest_names_the_last_good_version(path: Path) -> None:
    flip(path / "versions/00000002.json", 60)
    with pytest.raises(ss.CorruptStoreError, match=r"00000002\.json.*last version that can be read is 1: open it with"):
        ss.open(path)
    assert ss.open(path, version=1).shape == (500, 60)


@pytest.mark.parametrize("name", ["zarr.json", "X/zarr.json", "X/indices/zarr.json", "segment.json"])
def test_edited_metadata_is_caught(path: Path, name: str) -> None:
    file = segment(path, 500) / name
    file.write_text(file.read_text().replace("500", "400", 1) if "500" in file.read_text() else file.read_text() + " ")
    assert ss.open(path).verify() != []


def test_a_store_that_went_away_says_which_rows_are_lost(path: Path) -> None:
    store = ss.open(path)
    shutil.rmtree(path)
    with pytest.raises(
        ss.CorruptStoreError, match=r"segment\.json, bytes 0 to 0 \(rows 0 to 500\): the object is missing"
    ):
        store[:5]


def test_unchecked_reads_are_a_choice(path: Path) -> None:
    flip(segment(path, 500) / "columns/y/c/0", -30)
    for check in ("first", "always"):
        with pytest.raises(ss.CorruptStoreError, match="rows 0 to 500"):
            ss.open(path, check=check).column("y")[:]
