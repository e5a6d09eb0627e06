"""Texts that become features, of CSV and of typed tables: as a plain model in Python, or scikit-learn, has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparsestore as ss
from sparsestore.convert import append_source

pa = pytest.importorskip("pyarrow")
extraction = pytest.importorskip("sklearn.feature_extraction")

Array = NDArray[Any]

N_HASHED = 4  # so few that several texts of a row share one
FORMS = ["csv", "table"]
ENCODINGS = ["dictionary", "hash"]
TYPES = {"uint8": (0, 255), "int8": (-127, 127), "uint64": (0, 2**53), "int64": (-(2**53), 2**53), "bool": (0, 1)}
TEXTS = st.sampled_from(["a", "b", "zz", "ü", 'q"', "x,y", "=", "0"])


class Model:
    """Features of entries (row, name, value): numbered as they first come, or hashed by scikit-learn."""

    def __init__(self, encode: str, unknown: str, names: Sequence[str]) -> None:
        self.encode, self.unknown = encode, unknown
        self.names = {name: number for number, name in enumerate(names)}

    def dense(self, n_rows: int, entries: Sequence[tuple[int, str, float]]) -> Array:
        """The entries as a matrix, those of one place added up."""
        if self.encode == "hash":
            bags: list[list[tuple[str, float]]] = [[] for _ in range(n_rows)]
            for row, name, value in entries:
                bags[row].append((name, value))
            hasher = extraction.FeatureHasher(N_HASHED, input_type="pair", dtype=np.float64)
            return np.asarray(hasher.transform(bags).toarray())
        add = self.unknown == "add" or not self.names
        if add:
            for _, name, _ in entries:
                self.names.setdefault(name, len(self.names))
        out = np.zeros((n_rows, len(self.names)))
        for row, name, value in entries:
            if name in self.names:
                out[row, self.names[name]] += value
        return out


def given_as(form: str, frame: pandas.DataFrame, types: dict[str, Any], path: Path) -> Any:
    """The frame as a file, or as a table of Arrow."""
    if form == "csv":
        frame.to_csv(path, index=False)
        return path
    return pa.table({name: pa.array(frame[name].tolist(), types.get(name)) for name in frame})


def check(store: ss.Store, wanted: Array, names: Sequence[str] | None, columns: dict[str, Array]) -> None:
    """Compare with what is wanted, whatever order the rows were put in."""
    order = store.column("row_id")[:] if "row_id" in store.columns else np.arange(len(wanted))
    assert sorted(order.tolist()) == list(range(len(wanted)))
    np.testing.assert_array_equal(store[:].toarray(), wanted[order])
    assert (None if store.feature_names is None else store.feature_names.tolist()) == names
    for name, column in columns.items():
        assert store.column(name)[:].tolist() == column[order].tolist()


def stacked(parts: Sequence[Array]) -> Array:
    """Matrices of growing width, one below the other."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    missing=st.sampled_from(["error", "zero", "nan"]),
    unknown=st.sampled_from(["add", "ignore"]),
    kind=st.sampled_from(list(TYPES)),
    shuffle=st.booleans(),
)
def test_wide_tables_are_the_model_and_so_is_another_day(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    encode: str,
    data: st.DataObject,
    missing: str,
    unknown: str,
    kind: str,
    shuffle: bool,
) -> None:
    folder = tmp_path_factory.mktemp("wide")
    texts = TEXTS if missing == "error" else st.one_of(st.none(), TEXTS)
    rows = st.lists(st.tuples(st.integers(*TYPES[kind]), texts, texts, texts), min_size=1, max_size=12)
    options: dict[str, Any] = {"categorical": "c*", "missing": missing, "encode": encode, "unknown": unknown}
    if form == "csv":
        options["dtype"] = "float64"
    options |= {"n_features": 1 + N_HASHED} if encode == "hash" else {}
    ways: dict[str, Any] = {"shuffle": shuffle, "seed": 7 if shuffle else None}
    model, parts = Model(encode, unknown, []), list[Array]()
    for day in range(2):
        frame = pandas.DataFrame(data.draw(rows), columns=["n", "c1", "c2", "c3"], dtype=object)
        types = {"n": pa.type_for_alias(kind), **dict.fromkeys(["c1", "c2", "c3"], pa.string())}
        if kind == "bool" and form == "table":
            frame["n"] = frame["n"].astype(bool)
        source = given_as(form, frame, types, folder / f"{day}.csv")
        entries = [
            (row, f"{name}={text or ''}", 1.0)
            for row, record in enumerate(frame[["c1", "c2", "c3"]].to_dict("records"))
            for name, text in record.items()
            if text is not None or missing == "nan"
        ]
        more = model.dense(len(frame), entries)
        parts.append(np.column_stack([frame["n"].to_numpy(np.float64), more]))
        if day == 0:
            ss.convert(source, folder / "a.zarr", **options, **ways)
        else:
            append_source(source, folder / "a.zarr", grow_features=True, **options, **ways)
        with ss.open(folder / "a.zarr") as store:
            check(store, stacked(parts), None if encode == "hash" else ["n", *model.names], {})


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    unknown=st.sampled_from(["add", "ignore"]),
    kind=st.sampled_from(list(TYPES)),
    numbered=st.booleans(),
    shuffle=st.booleans(),
)
def test_triples_are_the_model_and_so_is_another_day(
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
    encode: str,
    data: st.DataObject,
    unknown: str,
    kind: str,
    numbered: bool,
    shuffle: bool,
) -> None:
    folder = tmp_path_factory.mktemp("triples")
    low, high = (max(TYPES[kind][0], -100), min(TYPES[kind][1], 100)) if kind != "int8" else (-10, 10)
    if kind == "uint8":
        high = 20  # sums have to fit
    records = st.lists(st.tuples(st.integers(0, 6), TEXTS, st.integers(low, high)), min_size=1, max_size=12)
    known = data.draw(st.lists(TEXTS, unique=True, max_size=4)) if encode == "dictionary" else []
    options: dict[str, Any] = {"row": "u" if numbered else "u:string", "feature": "f:string", "value": "v"}
    options |= {"label": "l", "encode": encode, "unknown": unknown}
    options |= {"n_features": N_HASHED} if encode == "hash" else {}
    ways: dict[str, Any] = {"shuffle": shuffle, "seed": 7 if shuffle else None}
    first = {"feature_names": known} if known else {}
    model, parts, users, labels = Model(encode, unknown, known), list[Array](), list[Any](), list[float]()
    for day in range(2):
        frame = pandas.DataFrame(data.draw(records), columns=["u", "f", "v"])
        if kind == "bool":
            frame = frame.drop_duplicates(["u", "f"]).reset_index(drop=True)  # any is their sum, not two
            if encode == "hash":
                frame = frame.drop_duplicates("u").reset_index(drop=True)
            frame["v"] = frame["v"].astype(bool if form == "table" else int)
        frame["l"] = frame["u"] % 3 + 0.5
        numbers, ids = (frame["u"], np.arange(frame["u"].max() + 1)) if numbered else pandas.factorize(frame["u"])
        types = {"u": pa.int64(), "f": pa.string(), "v": pa.type_for_alias(kind), "l": pa.float64()}
        source = given_as(form, frame, types, folder / f"{day}.csv")
        entries = list(zip(np.asarray(numbers).tolist(), frame["f"], frame["v"].astype(float), strict=True))
        parts.append(model.dense(len(ids), entries))
        users += [str(user) for user in ids.tolist()]
        labels += [user % 3 + 0.5 if user in set(frame["u"]) else np.nan for user in ids.tolist()]
        if day == 0:
            ss.convert(source, folder / "a.zarr", **options, **ways, **first)
        else:
            append_source(source, folder / "a.zarr", grow_features=True, **options, **ways)
        with ss.open(folder / "a.zarr") as store:
            columns = {} if numbered else {"u": np.array(users, object)}
            check(store, stacked(parts), None if encode == "hash" else list(model.names), columns)
            order = store.column("row_id")[:] if shuffle else np.arange(len(labels))
            np.testing.assert_array_equal(store.column("y")[:], np.array(labels)[order])
