"""Names of features: kept with a version, checked as all else is, used to select, and never mixed up."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.checksum import crc32c
from sparsestore.cli import app
from sparsestore.convert import append_source
from sparsestore.documents import seal
from sparsestore.errors import CorruptStoreError
from sparsestore.features import as_names, write_names
from sparsestore.maintain import gc
from sparsestore.storage import LocalStorage

NAMES = ["age", "height", "größe", "weight in kg"]
X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ss.convert(X, tmp_path / "a.zarr", feature_names=NAMES)
    return tmp_path / "a.zarr"


def folder(path: Path) -> Path:
    """The one folder of names."""
    (found,) = (path / "features").iterdir()
    return found


def names_of(store: ss.View) -> list[str] | None:
    return None if store.feature_names is None else store.feature_names.tolist()


def test_names_are_read_back_and_select_features(path: Path) -> None:
    store = ss.open(path)
    assert names_of(store) == NAMES
    view = store.select(features=["größe", "age"])
    np.testing.assert_array_equal(view[:].toarray(), X[:, [2, 0]])
    assert names_of(view) == ["größe", "age"]
    assert names_of(view.select(features=["age"])) == ["age"]
    np.testing.assert_array_equal(view.select(features="age")[:].toarray(), X[:, [0]])
    assert names_of(store.select(rows=slice(1))) == NAMES
    assert store.verify() == []


def test_any_zarr_reader_reads_them(path: Path) -> None:
    array = zarr.open_array(folder(path) / "names", mode="r")
    assert list(array[:]) == NAMES


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, unique=True))
@settings(max_examples=30, deadline=None)
def test_any_text_is_a_name(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "named.zarr"
    store = ss.convert(np.ones((1, len(names))), path, feature_names=names, overwrite=True)
    assert names_of(store) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "feature_names has 2 names, expected one for each of the 4 features of numpy ndarray"),
        (["a", "b", "a", "c"], "feature 2 has the name 'a', as feature 0 has: rename one"),
        (["a", "", "b", "c"], "feature 1 has a name of 0 bytes, expected 1 to 1000"),
        (["a", "x" * 1001, "b", "c"], "feature 1 has a name of 1001 bytes"),
        (["a", 7, "b", "c"], "feature 1 has the name 7, expected text"),
        (["a", "\ud800", "b", "c"], "feature 1 has the name '.*', which is no valid text"),
        ("abcd", "feature_names is 'abcd', expected a sequence of names"),
    ],
)
def test_what_are_no_names_is_refused_before_anything_is_made(tmp_path: Path, names: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ss.convert(X, tmp_path / "b.zarr", feature_names=names)  # type: ignore[arg-type]
    assert not (tmp_path / "b.zarr").exists()


def test_features_without_names_can_not_be_chosen_by_name(tmp_path: Path, path: Path) -> None:
    store = ss.convert(X, tmp_path / "b.zarr")
    assert store.feature_names is None
    with pytest.raises(KeyError, match="have no names: give their numbers, 0 to 3"):
        store.select(features=["age"])
    with pytest.raises(KeyError, match="there is no feature 'ages': the first of 4 are"):
        ss.open(path).select(features=["age", "ages"])


def test_rows_that_are_appended_keep_the_names_and_share_their_folder(path: Path) -> None:
    store = ss.open(path).append(X)
    assert names_of(store) == NAMES
    folder(path)
    with ss.create(path, overwrite=True, feature_names=["a", "b"]) as writer:
        writer.append(X[:, :2])
    assert names_of(ss.open(path)) == ["a", "b"]
    assert names_of(ss.open(path, version=1)) == NAMES
    assert len(list((path / "features").iterdir())) == 2


def test_wider_rows_need_names_for_all(path: Path) -> None:
    wide = np.ones((2, 6), np.float32)
    before = sorted(file for file in path.rglob("*") if file.is_file())
    with pytest.raises(ValueError, match="these rows have 6 features where it has 4: give feature_names for all"):
        ss.open(path).append(wide, grow_features=True)
    with pytest.raises(ValueError, match=r"feature 1 is 'x', in .* it is 'height'"):
        append_source(wide, path, grow_features=True, feature_names=["age", "x", "größe", "weight in kg", "e", "f"])
    assert sorted(file for file in path.rglob("*") if file.is_file()) == before
    append_source(wide, path, grow_features=True, feature_names=[*NAMES, "e", "f"])
    assert names_of(ss.open(path)) == [*NAMES, "e", "f"]
    assert names_of(ss.open(path, version=1)) == NAMES
    assert ss.open(path).verify() == []


def test_a_store_gets_names_later(tmp_path: Path) -> None:
    ss.convert(X, tmp_path / "b.zarr")
    append_source(X, tmp_path / "b.zarr", feature_names=NAMES)
    assert names_of(ss.open(tmp_path / "b.zarr")) == NAMES
    assert ss.open(tmp_path / "b.zarr", version=1).feature_names is None


def test_names_travel_from_store_to_store(path: Path, tmp_path: Path) -> None:
    assert names_of(ss.convert(path, tmp_path / "b.zarr", shuffle=True, profile="compact")) == NAMES
    assert names_of(ss.convert(path, tmp_path / "c.zarr", select="weight in kg,age")) == ["weight in kg", "age"]
    assert names_of(ss.convert(ss.open(path).select(features=[3, 1]), tmp_path / "d.zarr")) == [
        "weight in kg",
        "height",
    ]
    assert names_of(ss.convert(path, tmp_path / "e.zarr", feature_names=["a", "b", "c", "d"])) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="found 'ages', expected names or numbers of features"):
        ss.convert(path, tmp_path / "f.zarr", select="age,ages")
    with pytest.raises(ValueError, match="feature_names has 4 names, expected one for each of the 9 features"):
        ss.convert(path, tmp_path / "f.zarr", n_features=9)
    assert not (tmp_path / "f.zarr").exists()


def test_gc_keeps_names_that_a_version_needs_and_removes_others(path: Path) -> None:
    ss.open(path).append(X)
    gc(path, older_than="0s")
    assert names_of(ss.open(path)) == NAMES
    stray = LocalStorage(path)
    write_names(stray, "f" * 32, as_names(["a"]))
    assert gc(path, older_than="0s") == [f"features/{'f' * 32}"]
    with ss.create(path, overwrite=True) as writer:
        writer.append(X)
    gc(path, older_than="0s")
    assert not list((path / "features").iterdir())


def test_names_of_a_writer_that_failed_are_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.rglob("*"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStorage, "publish", fail)
    with pytest.raises(OSError, match="No space left"), ss.create(path, overwrite=True, feature_names=["a"]) as writer:
        writer.append(X[:, :1])
    assert sorted(path.rglob("*")) == before


def damage(path: Path, how: str) -> str:
    """Do something to names; what verify says of it."""
    names = folder(path)
    key = {"document": "features.json", "array": "names/zarr.json", "group": "zarr.json"}.get(how, "names/c/0")
    file = names / key
    if how == "missing":
        file.unlink()
        return r"names/c/0, .*missing"
    if how == "short":
        file.write_bytes(file.read_bytes()[:-1])
        return r"names/c/0, .*bytes, expected"
    if how == "folder":
        shutil.rmtree(names)
        return r"features\.json, .*missing"
    payload = bytearray(file.read_bytes())
    payload[len(payload) // 2] ^= 1
    file.write_bytes(payload)
    return rf"{key}, .*(does not|do not) match"


@pytest.mark.parametrize("how", ["flip", "missing", "short", "folder", "document", "array", "group"])
def test_damage_is_an_error_and_a_problem_and_rows_are_read_on(path: Path, how: str) -> None:
    expected = damage(path, how)
    store = ss.open(path)
    np.testing.assert_array_equal(store[:].toarray(), X)
    if how != "group":  # which only zarr's readers look at
        with pytest.raises(CorruptStoreError):
            store.feature_names  # noqa: B018
    problems = store.verify()
    assert len(problems) == 1, problems
    assert re.search(expected, problems[0]), problems
    fast = store.verify(deep=False)
    assert fast == (problems if how in ("missing", "short", "folder", "document") else [])


def test_verify_maps_no_names_which_others_may_cut_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "map", lambda *_: pytest.fail("a file was mapped"))
    assert ss.open(path).verify() == []


def test_too_few_names_are_damage(path: Path) -> None:
    manifest = path / "versions/00000001.json"
    document = json.loads(manifest.read_bytes())
    entry = write_names(LocalStorage(path), "e" * 32, as_names(["a", "b"]))
    document.pop("crc32c")
    document["features"] = entry.to_json()
    manifest.write_bytes(seal(document, crc32c))
    with pytest.raises(CorruptStoreError, match="it has 2 names, expected 4, one a feature"):
        ss.open(path).feature_names  # noqa: B018
    assert [p for p in ss.open(path).verify() if "it has 2 names, expected 4" in p]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a", "b", "c", "b"], "feature 3 has the name 'b', as feature 1 has"),
        (["a", "b", "", "d"], "feature 2 has a name of 0 bytes, expected 1 to 1000"),
        (["a", "b", "c", "d" * 1001], "feature 3 has a name of 1001 bytes, expected 1 to 1000"),
    ],
    ids=["twice", "empty", "long"],
)
def test_names_of_another_writer_that_are_none_are_a_problem(path: Path, names: list[str], reason: str) -> None:
    manifest = path / "versions/00000001.json"
    document = json.loads(manifest.read_bytes())
    entry = write_names(LocalStorage(path), "e" * 32, np.array(names, object))
    document.pop("crc32c")
    document["features"] = entry.to_json()
    manifest.write_bytes(seal(document, crc32c))
    (problem,) = ss.open(path).verify()
    assert f"features/{'e' * 32}/names, " in problem
    assert reason in problem
    with pytest.raises(ValueError, match=reason.partition(",")[0]):  # as whoever takes them says
        ss.convert(ss.open(path), path.parent / "again.zarr")


def test_the_command_takes_shows_and_selects_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    run = CliRunner()
    store = str(tmp_path / "b.zarr")
    found = run.invoke(app, ["convert", str(tmp_path / "x.npy"), store, "--feature-names", str(tmp_path / "names.txt")])
    assert found.exit_code == 0, found.output
    assert "4 named features" in found.output
    assert "age:4.0 height:5.0" in run.invoke(app, ["head", store]).output
    rows = json.loads(run.invoke(app, ["head", store, "--json"]).output)
    assert rows[1]["features"] == NAMES
    found = run.invoke(app, ["convert", store, str(tmp_path / "c.zarr"), "--select", "height,age"])
    assert found.exit_code == 0, found.output
    assert names_of(ss.open(tmp_path / "c.zarr")) == ["height", "age"]
    (tmp_path / "bad.txt").write_bytes(b"a\xff\n")
    options = ["--feature-names", str(tmp_path / "bad.txt")]
    found = run.invoke(app, ["convert", str(tmp_path / "x.npy"), str(tmp_path / "d.zarr"), *options])
    assert found.exit_code == 1
    assert "is no UTF-8 text" in found.output
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe"):  # the first name would have it
        (tmp_path / "bad.txt").write_bytes(mark + b"age\n")
        found = run.invoke(app, ["convert", str(tmp_path / "x.npy"), str(tmp_path / "d.zarr"), *options])
        assert found.exit_code == 1
        assert "bad.txt:1: starts with a byte order mark" in found.output


def test_progress_of_verify_ends_at_its_total(path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    assert ss.open(path).verify(progress=lambda position, total, _: told.append((position, total))) == []
    assert told[-1][0] == told[-1][1]
