"""What a conversion would do: the first rows as understood, exact where all was read, near where it was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_source import DATA
from scipy import sparse
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore import preview as module
from sparsestore.cli import app
from sparsestore.convert import convert
from sparsestore.errors import ResourceError
from sparsestore.preview import preview


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_small_file_is_told_exactly(tmp_path: Path) -> None:
    seen = preview(DATA / "a9a.gz", tmp_path / "a.zarr", format="svmlight", n_features=123)
    convert(DATA / "a9a.gz", tmp_path / "b.zarr", format="svmlight", n_features=123, progress=False)
    with ss.open(tmp_path / "b.zarr") as store:
        assert (seen.rows, seen.features, seen.nnz) == (*store.shape, store.nnz)
        assert seen.read == 1
        assert seen.columns == {"y": "float32"}
        assert [row["indices"] for row in seen.head] == [store[row].indices.tolist() for row in range(5)]
        assert [row["columns"]["y"] for row in seen.head] == store.column("y")[:5].tolist()
    size = sum(path.stat().st_size for path in (tmp_path / "b.zarr").rglob("*") if path.is_file())
    assert abs(seen.store_bytes - size) < 1000
    assert seen.problems == []
    assert left_in(tmp_path) == ["b.zarr"]
    columns = {"s": np.array(["a", "bc"]), "k": np.zeros((2, 3), ">f4")}
    assert preview(np.eye(2), tmp_path / "a.zarr", columns=columns).columns == {"s": "string", "k": "float32"}


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_a_part_tells_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    monkeypatch.setattr(module, "_SAMPLE", 1 << 20)
    x = sparse.random_array((100_000, 50), density=0.2, rng=np.random.default_rng(0), dtype=np.float32).tocsr()
    seen = preview(x, tmp_path / "a.zarr", columns={"z": np.arange(100_000)}, shuffle=shuffle)
    assert seen.read < 0.6
    assert seen.rows == 100_000
    assert seen.nnz == pytest.approx(x.nnz, rel=0.05)
    convert(x, tmp_path / "b.zarr", columns={"z": np.arange(100_000)}, shuffle=shuffle, progress=False)
    size = sum(path.stat().st_size for path in (tmp_path / "b.zarr").rglob("*") if path.is_file())
    assert seen.store_bytes == pytest.approx(size, rel=0.2)
    assert seen.columns == {"z": "int64"} | ({"row_id": "int64"} if shuffle else {})
    assert ("put the rows in random order, in passing" in seen.steps) == shuffle
    assert seen.scratch_bytes == 0  # taken where they stand in memory
    assert seen.head[0]["columns"].get("z") == (None if shuffle else 0)


def test_triples_and_texts_are_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"u{k % 700},i{k % 90},1\n" for k in range(700_000))
    (tmp_path / "x.csv").write_text("u,i,x\n" + lines)
    options: dict[str, Any] = {"row": "u:string", "feature": "i:string", "value": "x", "max_bytes": "24MiB"}
    monkeypatch.setattr(module, "_SAMPLE", 1 << 20)
    seen = preview(tmp_path / "x.csv", tmp_path / "a.zarr", **options)
    assert (seen.rows, seen.features) == (None, None)
    assert seen.feature_names is not None
    assert seen.feature_names[:3] == ["i0", "i1", "i2"]
    assert seen.scratch_bytes > 0
    assert "bucket files" in seen.steps[1]
    monkeypatch.setattr(module, "_SAMPLE", 1 << 30)
    whole = preview(tmp_path / "x.csv", tmp_path / "a.zarr", **options)
    assert (whole.rows, whole.features, whole.read) == (700, 90, 1)


def test_what_would_be_refused_is_told(tmp_path: Path) -> None:
    convert(np.eye(3), tmp_path / "a.zarr", progress=False)
    seen = preview(np.eye(3), tmp_path / "a.zarr")
    assert seen.problems == [
        f"{tmp_path / 'a.zarr'} is a store already: give overwrite=True (--overwrite), or append to it"
    ]
    assert preview(np.eye(3), tmp_path / "a.zarr", overwrite=True).problems == []
    with pytest.raises(ValueError, match="gives its blocks once"):
        preview(iter([np.eye(3)]), tmp_path / "b.zarr")
    (tmp_path / "x.svm").write_text("1 1:x\n")
    with pytest.raises(ValueError, match=r"x\.svm:1: "):
        preview(tmp_path / "x.svm", tmp_path / "b.zarr")
    assert left_in(tmp_path) == ["a.zarr", "x.svm"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "column_too_short": ({"columns": {"w": np.arange(1)}}, "column 'w' has 1 values, and .*x.svm more rows"),
    "column_too_long": ({"columns": {"w": np.arange(5)}}, "column 'w' has 5 values, expected one for each of the 2"),
    "column_complex": ({"columns": {"w": np.arange(2) * 1j}}, "column 'w' has dtype complex128"),
    "column_row_id": ({"columns": {"row_id": np.arange(2)}}, "column 'row_id' is kept by the store itself"),
    "column_name": ({"columns": {"a/b": np.arange(2)}}, "column name 'a/b' can not be stored"),
    "few_names": ({"feature_names": ["a", "b"]}, "feature_names has 2 names, expected one for each of the 3 features"),
    "many_names": ({"feature_names": list("abcd")}, "feature_names has 4 names, expected one for each of the 3"),
    "workers": ({"workers": 99}, "for 99 workers, expected at least"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_are_refused_as_the_conversion_refuses_them(tmp_path: Path, case: str) -> None:
    (tmp_path / "x.svm").write_text("1 1:2 3:4\n0 2:1\n")
    arguments, reason = REFUSED[case]
    for way in (preview, convert):
        with pytest.raises((ValueError, ResourceError), match=reason):
            way(tmp_path / "x.svm", tmp_path / "a.zarr", **arguments)
    assert left_in(tmp_path) == ["x.svm"]


def test_a_place_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    for name in ("file", "folder", "file/a.zarr"):
        with pytest.raises(FileExistsError) as refused:
            convert(np.eye(3), tmp_path / name)
        assert preview(np.eye(3), tmp_path / name).problems == [str(refused.value)]


def test_names_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file whose first rows have fewer features, and that does not say how many there are."""
    monkeypatch.setattr(module, "_SAMPLE", 64 << 10)
    rows = "".join(f"1 {' '.join(f'{k}:1.5' for k in range(1, 41))}\n" for _ in range(60_000))
    (tmp_path / "x.svm").write_text(rows + "1 5000:1\n")
    names = [f"f{k}" for k in range(5000)]
    seen = preview(tmp_path / "x.svm", tmp_path / "a.zarr", feature_names=names)
    assert seen.read < 1
    assert seen.feature_names == names[:10]
    assert seen.head[0]["features"][:2] == ["f0", "f1"]
    with pytest.raises(ValueError, match="has 39 names, expected one for each of the at least 40 features of"):
        preview(tmp_path / "x.svm", tmp_path / "a.zarr", feature_names=names[:39])


def test_the_command_line_shows_it_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,y\n1,0\n2,1\n")
    command = ["convert", str(tmp_path / "x.csv"), str(tmp_path / "a.zarr"), "--label", "y", "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "2 rows x 1 features" in done.stdout
    assert "0  y=0.0  a:1.0" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["rows"] == 2
    assert told["head"][1] == {"row": 1, "columns": {"y": 1.0}, "indices": [0], "data": [2.0], "features": ["a"]}
    assert left_in(tmp_path) == ["x.csv"]
    ss.convert(tmp_path / "x.csv", tmp_path / "a.zarr")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
