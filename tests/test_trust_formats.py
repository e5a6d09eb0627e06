"""The campaigns of the later formats, of names and of exports find what they are made for; and what they found."""

from __future__ import annotations

import io
import random
import sqlite3
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trust import format_inputs, formats, names, scenes

import sparsestore as ss
from sparsestore.errors import SourceError
from sparsestore.manifest import read_manifest
from sparsestore.sources import csv
from sparsestore.sources.file import printable
from sparsestore.sources.registry import open_source
from sparsestore.storage import LocalStorage

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="campaigns run on Linux")

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


# -------------------------------------------------------------------------------------- campaigns without a defence


def cases_of(source: str, n: int) -> list[int]:
    return [len(formats.TURNS) * i + formats.TURNS.index(source) for i in range(n)]


def test_an_error_that_names_no_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of("csv", 40)
    assert formats.run(cases, tmp_path).faults == []

    def error(*_: Any) -> SourceError:
        return SourceError("something is wrong")

    monkeypatch.setattr("sparsestore.sources.fields.Fields.error", error)
    assert "an error that is not clear" in str(formats.run(cases, tmp_path).faults)


def test_values_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = csv.CsvSource._rounded
    monkeypatch.setattr(csv.CsvSource, "_rounded", lambda *given: real(*given) + 1)
    assert "values differ" in str(formats.run(cases_of("csv", 40), tmp_path).faults)


def test_inputs_are_their_numbers_alone() -> None:
    for source in formats.OWN:
        a, b = (format_inputs.made(source, random.Random(7)) for _ in range(2))
        assert (a.data, a.options) == (b.data, b.options)


def test_the_store_of_names_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (names.build(tmp_path / name) for name in "ab")
    assert first.objects == second.objects
    assert len(first.objects) == names.OBJECTS
    assert sum(map(len, first.objects.values())) == names.BYTES
    assert len({key.split("/")[1] for key in first.objects if key.startswith("features/")}) == 2
    assert names.build(tmp_path / "c", seed=1).keys == first.keys


def test_damage_that_verify_does_not_see_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = names.build(tmp_path / "a")
    newest = read_manifest(LocalStorage(store.root)).features
    assert newest is not None
    at = sum(len(payload) for key, payload in store.objects.items() if key < f"{newest.prefix}/zarr.json")
    assert names.run([8 * at], tmp_path / "sound").faults == []
    monkeypatch.setattr(names.Asker, "__init__", blind(names.Asker.__init__, monkeypatch))
    assert "verify reports nothing" in str(names.run([8 * at], tmp_path / "blind").faults)


def blind(real: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Once all that is sound was looked at, verify finds nothing."""

    def begin(self: names.Asker, store: Any) -> None:
        real(self, store)
        monkeypatch.setattr(ss.Store, "verify", lambda *_, **__: [])

    return begin


def test_half_an_export_is_found(tmp_path: Path) -> None:
    scene = scenes.MORE_SCENES[1]
    scene.begin(tmp_path)
    assert scene.state(tmp_path) == ("before", "")
    scene.work(tmp_path)
    assert scene.state(tmp_path) == ("after", "")
    path = tmp_path / scenes.EXPORTED
    path.write_bytes(path.read_bytes()[:-9])
    assert "neither the old nor the new one" in scene.state(tmp_path)[1]


# -------------------------------------------------------------------------------------------------- what they found


def test_a_lone_carriage_return_in_a_table_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\rc,d\n1,2\n")
    with pytest.raises(SourceError, match=r"x\.csv:1: the line has no fields that can be read"):
        open_source(path)
    path.write_bytes(b"a,b\n1,2\r3,4\n")
    with pytest.raises(SourceError, match=r"x\.csv:2: "):
        list(open_source(path, keep="b:int64").blocks(1 << 20))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_categories_without_rows_becomes_a_store(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        path.write_text("n,c,z\n")
    else:
        types = {"n": pa.float64(), "c": pa.string(), "z": pa.string()}
        parquet.write_table(pa.table({name: pa.array([], type_) for name, type_ in types.items()}), path)
    with ss.convert(path, tmp_path / "s.zarr", categorical="c", keep="z", progress=False) as store:
        assert store.shape == (0, 1)
        assert list(store.feature_names) == ["n"]
        assert list(store.columns) == ["z"]


def test_what_libraries_say_is_one_printable_line() -> None:
    assert printable(ValueError("a\n  b\x1b[2J ü")) == "a b\\x1b[2J ü"
    assert printable(ValueError()) == "ValueError"
    assert printable("x" * 999) == "x" * 200


def test_names_of_columns_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pa.ipc.new_file(tmp_path / "x.arrow", pa.schema([("price", pa.float64())])) as file:
        file.write_table(pa.table({"price": [1.0]}))
    path = tmp_path / "x.arrow"
    path.write_bytes(path.read_bytes().replace(b"price", b"pri\xcce"))
    with pytest.raises(SourceError, match="a column has a name that is no UTF-8 text"):
        open_source(path)


def test_a_structure_that_is_no_vector_is_refused(tmp_path: Path) -> None:
    kind = pa.struct(
        [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", kind_of())]
    )
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"v": pa.array([None], kind)}), path)
    with pytest.raises(ValueError, match=r"vector='v' is of type struct<.*expected vectors or lists"):
        open_source(path, vector="v")


def kind_of() -> Any:
    return pa.struct([("list", pa.float64())])


def test_a_database_whose_schema_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (price real)")
    connection.close()
    path.write_bytes(path.read_bytes().replace(b"TABLE t", b"TAB\xccE t").replace(b"table t", b"tab\xcce t"))
    with pytest.raises(SourceError, match=r"x\.sqlite: the query fails"):
        open_source(path, sql="select * from t")


def test_parquet_whose_columns_are_described_wrongly_does_not_end_the_process(tmp_path: Path) -> None:
    """A histogram of the wrong length, which Arrow's metadata find without an error that Python sees."""
    case = 40 * 61 + formats.TURNS.index("parquet")
    found = format_inputs.made("parquet", random.Random(case))
    path = tmp_path / "x.parquet"
    path.write_bytes(found.data)
    with pytest.raises(SourceError, match=r"x\.parquet: damaged behind row 0"):
        list(open_source(path, **found.options).blocks(1 << 20))


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"x\.zip: is no sound zip file"):
        open_source(path, format="binsparse")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("zarr.json", "{}" * 40)
    path.write_bytes(buffer.getvalue().replace(b"{}{}", b"{}[]", 1))
    with pytest.raises(SourceError, match=r"x\.zip"):
        open_source(path, format="binsparse")


def test_a_heap_of_text_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in {
            "indptr": np.array([0, 1]),
            "indices": np.array([0]),
            "data": np.array([1], "i4"),
            "shape": np.array([2, 1]),
            "barcodes": np.array([b"AC-1"]),
        }.items():
            group[name] = values
        group.create_dataset("features/id", data=np.array(["g0", "g1"], object), dtype=h5py.string_dtype())
    assert open_source(path, format="tenx").feature_names.tolist() == ["g0", "g1"]
    data = bytearray(path.read_bytes())
    # its first object becomes free space, none of it
    at = data.index(b"GCOL") + 16
    data[at : at + 16] = bytes(16)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"matrix/features/id: damaged: the heap of text at byte \d+ has no end"):
        open_source(path, format="tenx")
