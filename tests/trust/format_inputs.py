"""Inputs of the campaign `formats`: small files of each format, made and then damaged, from a generator alone."""

from __future__ import annotations

import io
import json
import random
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import tfrecords
from numpy.typing import NDArray
from scipy import sparse

from trust import inputs, mutation
from trust.inputs import DATA, PACK, damaged_bytes

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Made:
    """A file, how it is read, and what is in it.

    Attributes
    ----------
    suffix : str
        Of its name.
    data : bytes or dict of str to bytes
        Of the file, or of files of a folder.
    options : dict
        For `open_source`.
    damage : callable
        From a generator and the data to damaged ones.
    x : array or None
        Rows and features of a sound file; None where that is not known.
    names : list of str or None
        Of the features, where the source numbers them as they come.
    rows : list of str or None
        Texts of the rows, the same.
    sound : bool
        Whether it is as it was made.
    """

    suffix: str
    data: Any
    options: dict[str, Any]
    damage: Callable[[random.Random, Any], Any]
    x: Array | None = None
    names: list[str] | None = None
    rows: list[str] | None = None
    sound: bool = True


def made(source: str, rng: random.Random) -> Made:
    """A file of a source, sound in one case of eight or so, else damaged, and perhaps compressed."""
    found: Made = globals()[source](rng)
    if rng.random() < 0.85:
        data = found.damage(rng, found.data)
        found = replace(found, data=data, sound=data == found.data)
    if found.damage is inputs.damaged_text and rng.random() < 0.2:
        packing = rng.choice(list(PACK))
        data = inputs.packed(rng, found.data, packing)
        # other readers pass over some damage, of which the campaign `parsers` knows more
        sound = found.sound and data == PACK[packing](found.data)
        found = replace(found, suffix=found.suffix + packing, data=data, sound=sound)
    return found


def _matrix(rng: random.Random, *, negative: bool = True, whole: bool = False) -> Array:
    """A few rows and features; the last feature has an entry, and so has each row."""
    kind = np.random.default_rng(rng.getrandbits(32))
    n, width = rng.choice([1, 3, 12, 40]), rng.choice([1, 4, 9])
    values = kind.integers(-6 if negative else 1, 20, (n, width)) / (1 if whole else 2)
    x = np.where(kind.random((n, width)) < 0.4, values, 0)
    x[:, -1] = 3
    return x


def _n_features(rng: random.Random, width: int) -> dict[str, Any]:
    return rng.choice([{}, {}, {"n_features": width}, {"n_features": 10**9}, {"n_features": 1}])


def _dtype(rng: random.Random) -> dict[str, Any]:
    return {"dtype": rng.choice(["float32", "float64"])}


def _joined(rng: random.Random, lines: list[str]) -> bytes:
    return rng.choice(["\n", "\n", "\r\n"]).join(lines).encode() + rng.choice([b"\n", b""])


def _known(options: dict[str, Any], x: Array) -> Array | None:
    return None if "n_features" in options else x


# ------------------------------------------------------------------------------------------------------------- text


def libffm(rng: random.Random) -> Made:
    """Label, and field:index:value."""
    options = {"zero_based": rng.random() < 0.7, "sort": rng.random() < 0.6, **_dtype(rng)}
    if rng.random() < 0.3:
        text = inputs.some_lines(rng, inputs.corpus("xlearn/small_head.txt"))
        return Made(".ffm", text, options, inputs.damaged_text)
    x = _matrix(rng)
    base = 0 if options["zero_based"] else 1
    lines = [
        " ".join([str(i), *(f"{rng.randrange(9)}:{j + base}:{row[j]:g}" for j in np.flatnonzero(row))])
        for i, row in enumerate(x)
    ]
    options |= _n_features(rng, x.shape[1])
    return Made(".ffm", _joined(rng, lines), options, inputs.damaged_text, _known(options, x))


def lda_c(rng: random.Random) -> Made:
    """Number of terms, and term:count."""
    options = {"sort": rng.random() < 0.5, **_dtype(rng)}
    if rng.random() < 0.2:
        return Made(".ldac", inputs.corpus("gensim/testcorpus.blei"), options, inputs.damaged_text)
    x = _matrix(rng, negative=False, whole=True)
    lines = [" ".join([str(np.count_nonzero(row)), *(f"{j}:{row[j]:g}" for j in np.flatnonzero(row))]) for row in x]
    options |= _n_features(rng, x.shape[1])
    return Made(".ldac", _joined(rng, lines), options, inputs.damaged_text, _known(options, x))


def uci(rng: random.Random) -> Made:
    """Three sizes, and triples."""
    options = _dtype(rng)
    if rng.random() < 0.2:
        return Made(".uci", inputs.corpus("gensim/testcorpus.uci"), options, inputs.damaged_text)
    x = _matrix(rng, negative=False, whole=True)
    entries = [f"{i + 1} {j + 1} {x[i, j]:g}" for i, j in zip(*np.nonzero(x), strict=True)]
    if rng.random() < 0.5:
        rng.shuffle(entries)
    lines = [*(str(n) for n in (*x.shape, len(entries))), *entries]
    options |= _n_features(rng, x.shape[1])
    return Made(".uci", _joined(rng, lines), options, inputs.damaged_text, _known(options, x))


def vw(rng: random.Random) -> Made:
    """Examples of Vowpal Wabbit."""
    encode = rng.choice(["dictionary", "dictionary", "hash", "number"])
    options: dict[str, Any] = {"encode": encode, "tag": rng.random() < 0.5, "importance": rng.random() < 0.5}
    options |= _dtype(rng) | ({"n_features": rng.choice([1, 7, 10**9])} if encode == "hash" else {})
    if rng.random() < 0.3:
        text = inputs.some_lines(rng, inputs.corpus(f"vw/{rng.choice(['0001_head.dat', 'rcv1_head.dat'])}"))
        return Made(".vw", text, options, inputs.damaged_text)
    x = _matrix(rng)
    spaces = [rng.choice(["", "a", "price", "ü"]) if encode != "number" else "" for _ in range(x.shape[1])]
    names = [f"{space}^{j}" if space else str(j) for j, space in enumerate(spaces)]
    lines = []
    for i, row in enumerate(x):
        parts = [str(i - 1)] + ["0.5"] * (options["importance"] and rng.random() < 0.5)
        head = " ".join(parts) + (f" 't{i}" if options["tag"] else "")
        groups: dict[str, list[str]] = {}
        for j in np.flatnonzero(row):
            groups.setdefault(spaces[j], []).append(f"{j}" if row[j] == 1 else f"{j}:{row[j]:g}")
        lines.append(head + "".join(f" |{space} {' '.join(found)}" for space, found in groups.items()))
    text, kept = _joined(rng, lines), np.flatnonzero(x.any(axis=0))
    if encode == "hash":
        return Made(".vw", text, options, inputs.damaged_text)
    if encode == "number":
        return Made(".vw", text, options, inputs.damaged_text, x)
    return Made(".vw", text, options, inputs.damaged_text, x[:, kept], [names[j] for j in kept])


def csv(rng: random.Random) -> Made:
    """A table of numbers."""
    x = _matrix(rng)
    delimiter = rng.choice([",", ";", "|", "\t", " "])
    options: dict[str, Any] = {"delimiter": delimiter, "missing": rng.choice(["error", "zero", "nan"]), **_dtype(rng)}
    names = [f"f{j}" for j in range(x.shape[1])]
    cells = [[f"{value:g}" for value in row] for row in x]
    if label := rng.random() < 0.5:
        cells, options["label"] = [[str(i), *row] for i, row in enumerate(cells)], "the label"
    if kept := rng.random() < 0.4:
        cells, options["keep"] = [[*row, f"text {i}"] for i, row in enumerate(cells)], rng.choice(["z", "z:string"])
    head = ["the label"] * label + names + ["z"] * kept
    rows = [
        delimiter.join(f'"{cell}"' if rng.random() < 0.1 or delimiter in cell else cell for cell in row)
        for row in cells
    ]
    if delimiter == " ":
        head = [name.replace("the label", '"the label"') for name in head]
    return Made(".csv", _joined(rng, [delimiter.join(head), *rows]), options, inputs.damaged_text, x)


def categories(rng: random.Random) -> Made:
    """A table of texts that become features, by a dictionary or by hashing."""
    n = rng.choice([1, 5, 30])
    words = ["a", "b", "long word", "ü", "", "1", "a^b", "x=y"]
    rows = [[rng.choice(words), rng.choice(words), str(rng.randrange(1, 4))] for _ in range(n)]
    encode = rng.choice(["dictionary", "dictionary", "hash"])
    options: dict[str, Any] = {"categorical": rng.choice(["C*", "C1,C2"]), "encode": encode, **_dtype(rng)}
    options |= {"missing": rng.choice(["error", "zero", "nan"])}
    options |= {"n_features": rng.choice([2, 7, 10**9])} if encode == "hash" else {}
    text = _joined(rng, ["C1,C2,n", *(",".join(row) for row in rows)])
    if encode == "hash" or not all(row[0] and row[1] for row in rows):
        return Made(".csv", text, options, inputs.damaged_text)
    names = ["n", *sorted({f"C{k + 1}={row[k]}" for row in rows for k in range(2)})]
    x = np.zeros((n, len(names)))
    for i, row in enumerate(rows):
        x[i, 0] = float(row[2])
        x[i, [names.index(f"C{k + 1}={row[k]}") for k in range(2)]] = 1
    return Made(".csv", text, options, inputs.damaged_text, x, names)


def ranges(rng: random.Random) -> Made:
    """A table of numbers that become ranges."""
    n = rng.choice([1, 5, 30])
    bounds = sorted(rng.sample(range(-5, 40), rng.randrange(1, 6)))
    ages = [rng.choice([rng.randrange(-9, 50), rng.gauss(0, 1e9), bounds[0], bounds[-1]]) for _ in range(n)]
    bucket = rng.choice([{"age": bounds}, "age:" + "|".join(map(str, bounds))])
    options = {"bucket": bucket, **_dtype(rng)}
    x = np.zeros((n, 1 + len(bounds) + 1))
    for i, age in enumerate(ages):
        x[i, np.searchsorted(bounds, age, "right")] = 1
    if rng.random() < 0.3:
        options["bucket"] = "age:log2"
        return Made(".csv", _joined(rng, ["age", *map(str, ages)]), options, inputs.damaged_text)
    return Made(".csv", _joined(rng, ["age", *map(repr, ages)]), options, inputs.damaged_text, x[:, : len(bounds) + 1])


def triples(rng: random.Random) -> Made:
    """A table of entries with numbers of rows and features."""
    x = _matrix(rng)
    base = rng.randrange(2)
    entries = [f"{i + base},{j + base},{x[i, j]:g},{i % 3}" for i, j in zip(*np.nonzero(x), strict=True)]
    rng.shuffle(entries)
    options: dict[str, Any] = {"row": "r", "feature": "f", "value": "v", "zero_based": not base, **_dtype(rng)}
    options |= {"label": "y"} if rng.random() < 0.5 else {}
    options |= rng.choice([{}, {"n_rows": len(x)}, {"n_rows": 10**7}, {"n_rows": 10**12}])
    known = x if options.get("n_rows", len(x)) == len(x) else None
    return Made(".csv", _joined(rng, ["r,f,v,y", *entries]), options, inputs.damaged_text, known)


def texts(rng: random.Random) -> Made:
    """A table of entries with texts as rows, features or both."""
    x = _matrix(rng)
    rows, names = [f"row {i}" for i in range(len(x))], [f"ü{j}" for j in range(x.shape[1])]
    entries = [f"{rows[i]}\t{names[j]}\t{x[i, j]:g}\t{i % 3}" for i, j in zip(*np.nonzero(x), strict=True)]
    rng.shuffle(entries)
    encode = rng.choice(["dictionary", "dictionary", "hash"])
    options: dict[str, Any] = {"row": "r:string", "feature": "f:string", "value": "v", "encode": encode, **_dtype(rng)}
    options |= {"n_features": rng.choice([3, 10**6])} if encode == "hash" else {}
    options |= {"label": "y"} if rng.random() < 0.5 else {}
    kept = [j for j in range(x.shape[1]) if x[:, j].any()]
    text = _joined(rng, ["r\tf\tv\ty", *entries])
    if encode == "hash":
        return Made(".tsv", text, options, inputs.damaged_text)
    return Made(".tsv", text, options, inputs.damaged_text, x[:, kept], [names[j] for j in kept], rows)


def arff(rng: random.Random) -> Made:
    """Sparse or dense rows under a header."""
    x = _matrix(rng)
    x[:, 0] = np.arange(len(x)) % 2
    kinds = ["numeric", "REAL", "integer"]
    lines = ["% note", "@relation 'a b'", "@attribute f0 {no, 'y e s'}"]
    lines += [f"@ATTRIBUTE 'f {j}' {rng.choice(kinds)}" for j in range(1, x.shape[1])]
    lines += ["@attribute note string", "@data"]
    scattered = rng.random() < 0.5
    for i, row in enumerate(x):
        cells = ["'y e s'" if row[0] else "no", *(f"{value:g}" for value in row[1:]), f"'t {i}'"]
        if scattered:
            chosen = [*np.flatnonzero(row).tolist(), x.shape[1]]
            lines.append("{" + ", ".join(f"{j} {cells[j]}" for j in chosen) + "}")
        else:
            lines.append(",".join(cells))
    options = {rng.choice(["keep", "drop"]): "note", "missing": rng.choice(["error", "zero", "nan"]), **_dtype(rng)}
    return Made(".arff", _joined(rng, lines), options, inputs.damaged_text, x)


# ---------------------------------------------------------------------------------------------------------- records


def tfrecord(rng: random.Random) -> Made:
    """Examples with ids and values, with ids, or with dense features; and lists of examples."""
    x = _matrix(rng)
    layout = rng.choice(["values", "ids", "dense", "elwc"])
    packed = rng.random() < 0.8
    examples: list[dict[str, Any]] = []
    if layout == "ids":
        x = (x != 0).astype(float)
    for i, row in enumerate(x):
        at = np.flatnonzero(row).tolist()
        example: dict[str, Any] = {"y": i, "user": f"ü{i}", "more": rng.choice([1.5, [2, 3], ["a", "b"]])}
        if layout in ("values", "ids"):
            example["i"] = tfrecords.ints(at, packed)
            example["v"] = tfrecords.floats(row[at].tolist(), packed)
        else:
            example["v"] = tfrecords.floats(row.tolist(), packed)
        names = list(example)
        rng.shuffle(names)
        examples.append({name: example[name] for name in names})
    options: dict[str, Any] = {"missing": rng.choice(["error", "zero"]), **_dtype(rng)}
    options |= {"ids": {"indices": "i"}, "values": {"indices": "i", "values": "v"}}.get(layout, {"features": "v"})
    options |= rng.choice([{}, {"label": "y"}]) | rng.choice([{}, {"keep": "user"}, {"keep": "user,y:int64"}])
    options |= {"label": "y"} if layout == "elwc" else {}
    if "y" in options.get("keep", "") and "label" in options:
        options["keep"] = "user"
    if layout == "elwc":
        options["layout"] = "elwc"
        cut = rng.randrange(len(examples) + 1)
        payloads = [tfrecords.elwc(part, {"query": "q"}) for part in (examples[:cut], examples[cut:])]
    else:
        payloads = [tfrecords.example(example) for example in examples]
    data = b"".join(map(tfrecords.record, payloads))
    if rng.random() < 0.15:
        options["compression"] = "zlib"
        return Made(".tfrecord", zlib.compress(data), options, _damaged_some, x)

    def damage(rng: random.Random, data: bytes) -> bytes:
        """Inside of records, which have right checksums, or anywhere."""
        if rng.random() < 0.3:
            return _damaged_some(rng, data)
        chosen = list(payloads)
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.randrange(len(chosen))
            chosen[at] = damaged_bytes(rng, chosen[at])
        return b"".join(map(tfrecords.record, chosen))

    return Made(".tfrecord", data, options, damage, x)


def _damaged_some(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = damaged_bytes(rng, data)
    return data


def _damaged_ends(rng: random.Random, data: bytes) -> bytes:
    """As `_damaged_some`, by turns at the end or the beginning, where files say what is in them."""
    cut = rng.choice([0, max(len(data) - 900, 0), max(len(data) - 60, 0)])
    if rng.random() < 0.2:
        head = min(200, len(data))
        return _damaged_some(rng, data[:head]) + data[head:]
    return data[:cut] + _damaged_some(rng, data[cut:])


# ----------------------------------------------------------------------------------------------------- typed tables


def _table(rng: random.Random) -> tuple[Any, dict[str, Any], Array, list[str] | None, list[str] | None]:
    """A table of Arrow of some shape, its options, and what is in it."""
    import pyarrow as pa

    x = _matrix(rng)
    n, width = x.shape
    shape = rng.choice(["wide", "triples", "texts", "lists", "vectors", "spark"])
    label = {"label": "y"} if rng.random() < 0.5 else {}
    y = pa.array(np.arange(n))
    if shape == "wide":
        columns = {f"f{j}": pa.array(x[:, j], rng.choice([pa.float32(), pa.float64()])) for j in range(width)}
        columns |= {"y": y, "z": pa.array([f"ü {i}" for i in range(n)])}
        others = {"drop": ["z"]} if label else {"drop": ["y"], "keep": "z"}
        return pa.table(columns), {**label, **others}, x, None, None
    if shape in ("triples", "texts"):
        i, j = np.nonzero(x)
        order = np.array(rng.sample(range(len(i)), len(i)))
        i, j = i[order], j[order]
        values = pa.array(x[i, j])
        if shape == "triples":
            made_of = {"r": pa.array(i), "f": pa.array(j, pa.int32()), "v": values}
            return pa.table(made_of), {"row": "r", "feature": "f", "value": "v"}, x, None, None
        rows, names = [f"row {k}" for k in range(n)], [f"ü{k}" for k in range(width)]
        made_of = {"r": pa.array([rows[k] for k in i]), "f": pa.array([names[k] for k in j]), "v": values}
        kept = sorted(set(j.tolist()))
        known = x[:, kept], [names[k] for k in kept], rows
        return pa.table(made_of), {"row": "r", "feature": "f", "value": "v"}, *known
    if shape == "lists":
        at = [np.flatnonzero(row) for row in x]
        made_of = {
            "i": pa.array([part.tolist() for part in at], pa.list_(rng.choice([pa.int32(), pa.uint16(), pa.int64()]))),
            "v": pa.array([row[part].tolist() for row, part in zip(x, at, strict=True)]),
        }
        return pa.table({**made_of, "y": y}), {"indices": "i", "values": "v", **label}, x, None, None
    if shape == "vectors":
        return pa.table({"v": pa.array(x.tolist()), "y": y}), {"vector": "v", **label}, x, None, None
    kind = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    vectors = []
    for row in x:
        at = np.flatnonzero(row)
        scattered = {"type": 0, "size": width, "indices": at.tolist(), "values": row[at].tolist()}
        vectors.append(rng.choice([scattered, {"type": 1, "size": None, "indices": None, "values": row.tolist()}]))
    return pa.table({"v": pa.array(vectors, kind), "y": y}), {"vector": "v", **label}, x, None, None


def parquet(rng: random.Random) -> Made:
    """A Parquet file; damaged above all in what it says of itself."""
    import pyarrow.parquet as pq

    table, options, x, names, rows = _table(rng)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression=rng.choice(["NONE", "NONE", "SNAPPY", "ZSTD", "GZIP", "LZ4"]),
        row_group_size=rng.choice([4, 1000]),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(["1.0", "2.0"]),
        write_page_checksum=rng.random() < 0.1,
        store_schema=rng.random() < 0.5,
    )
    return Made(".parquet", buffer.getvalue(), options, _damaged_ends, x, names, rows)


def arrow(rng: random.Random) -> Made:
    """An Arrow IPC file."""
    import pyarrow as pa

    table, options, x, names, rows = _table(rng)
    buffer = io.BytesIO()
    how = pa.ipc.IpcWriteOptions(compression=rng.choice([None, None, "lz4", "zstd"]))
    with pa.ipc.new_file(buffer, table.schema, options=how) as writer:
        writer.write_table(table, max_chunksize=rng.choice([4, 1000]))
    return Made(".arrow", buffer.getvalue(), options, _damaged_ends, x, names, rows)


def sqlite(rng: random.Random) -> Made:
    """A database of SQLite with a table."""
    x = _matrix(rng)
    connection = sqlite3.connect(":memory:")
    columns = [f"f{j}" for j in range(x.shape[1])]
    connection.execute(f"create table t ({', '.join(f'{name} real' for name in columns)})")
    connection.executemany(f"insert into t values ({', '.join('?' * len(columns))})", x.tolist())
    if rng.random() < 0.5:
        connection.execute("create index i on t (f0)")
    connection.commit()
    data = connection.serialize()
    connection.close()
    used = data.rstrip(b"\0") or data

    def damage(rng: random.Random, data: bytes) -> bytes:
        """Where it is not empty, mostly."""
        changed = bytearray(data)
        for _ in range(rng.choice([1, 2, 4])):
            places = [at for at in range(len(used)) if used[at]] if rng.random() < 0.9 else range(len(data))
            changed[rng.choice(places)] ^= 1 << rng.randrange(8)
        return bytes(changed) if rng.random() < 0.8 else damaged_bytes(rng, bytes(changed))

    sql = rng.choice(["select * from t", "select * from t order by f0"])
    options = {"sql": sql, "missing": rng.choice(["error", "zero"])}
    return Made(".sqlite", data, options, damage, None if "order" in sql else x)


# ------------------------------------------------------------------------------------------------------------- HDF5


def _stored(rng: random.Random, values: Any) -> dict[str, Any]:
    """How a dataset lies in a file."""
    values = np.asarray(values)
    if values.ndim == 0 or not values.size or values.dtype.kind == "O" or rng.random() < 0.5:
        return {}
    chunks = tuple(max(1, min(length, rng.choice([1, 7, 50]))) for length in values.shape)
    how: dict[str, Any] = {"chunks": chunks, "compression": rng.choice([None, "gzip", "lzf"])}
    return how | {"shuffle": rng.random() < 0.3, "fletcher32": rng.random() < 0.1}


def _put(rng: random.Random, group: Any, name: str, values: Any, **attributes: Any) -> None:
    made_of = group.create_dataset(name, data=values, **_stored(rng, values))
    made_of.attrs.update(attributes)


def _text(values: list[str]) -> Array:
    import h5py

    return np.array(values, h5py.string_dtype())


def _written(rng: random.Random, write: Callable[[Any], None]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=rng.choice(["earliest", "latest"])) as file:
        write(file)
    return buffer.getvalue()


def _damaged_hdf5(rng: random.Random, data: bytes) -> bytes:
    """Arrays and attributes exchanged for others by the library itself, or bytes changed."""
    if rng.random() < 0.5:
        return _damaged_some(rng, data)
    buffer = io.BytesIO(data)
    try:
        _edited(rng, buffer)
    except (TypeError, ValueError):  # what h5py does not write
        return _damaged_some(rng, data)
    return buffer.getvalue()


def _edited(rng: random.Random, buffer: io.BytesIO) -> None:
    """An array, an attribute or a link exchanged, or gone."""
    import h5py

    with h5py.File(buffer, "r+") as file:
        places: list[str] = []
        file.visit(places.append)
        name = rng.choice(places)
        here = file[name]
        if isinstance(here, h5py.Dataset) and rng.random() < 0.8:
            values, attributes = here[()], dict(here.attrs)
            del file[name]
            if rng.random() < 0.1:
                file[name] = rng.choice(
                    [h5py.SoftLink(f"/{rng.choice(places)}"), h5py.ExternalLink("/etc/passwd", "/x"), h5py.Empty("f4")]
                )
            elif rng.random() < 0.2:
                shape = tuple(rng.choice([0, 1, length, 2 * length, 2**40]) for length in np.shape(values))
                file.create_dataset(name, shape, "f4", chunks=tuple(min(9, n) for n in shape) if all(shape) else None)
            else:
                other = inputs._damaged_array(rng, values) if isinstance(values, np.ndarray) else rng.choice([0, "x"])
                other = (
                    other.astype(h5py.string_dtype()) if getattr(other, "dtype", np.dtype("O")).kind in "OU" else other
                )
                file.create_dataset(name, data=other, **_stored(rng, other)).attrs.update(attributes)
        elif rng.random() < 0.2:
            del file[name]
        else:
            owner = rng.choice([file, here])
            if len(owner.attrs):
                attribute = rng.choice(list(owner.attrs))
                old = owner.attrs[attribute]
                new = [rng.choice(mutation._NUMBERS[:20]), "x", "", np.zeros(3), np.zeros((0, 2)), _text(["a", "b"])]
                if isinstance(old, np.ndarray) and old.dtype.kind in "iu" and old.size:
                    new += [old * 2, old[:1], old.astype(float), -old, old + 2**40]
                if isinstance(old, str) and old[:1] == "{":
                    changed = mutation.mutated(rng, old.encode()).replace(b"\0", b"")
                    new = [json.dumps(mutation.document(rng, json.loads(old))), changed.decode(errors="replace")]
                owner.attrs[attribute] = rng.choice(new)


def endless(data: bytes) -> bool:
    """Whether a heap of text has free space of no bytes, over which HDF5 (1.14) goes round in a circle.

    Where the text is that of a dataset the source refuses it; that of an attribute can not be looked at before.
    """
    for found in re.finditer(b"GCOL", data):
        at = found.start() + 16
        stop = min(len(data), found.start() + int.from_bytes(data[at - 8 : at], "little"))
        while at + 16 <= stop:
            number, length = (
                int.from_bytes(data[at : at + 2], "little"),
                int.from_bytes(data[at + 8 : at + 16], "little"),
            )
            if not number and not length:
                return True
            at += 16 + (length + 7) // 8 * 8 if number else length
    return False


def hdf5(rng: random.Random) -> Made:
    """A dense dataset, and labels."""
    x = _matrix(rng).astype(rng.choice(["f4", "f8", ">f4"]))
    options: dict[str, Any] = {} if rng.random() < 0.7 else {"dataset": "a/x"}
    options |= {"label": "y"} if rng.random() < 0.5 else {}

    def write(file: Any) -> None:
        _put(rng, file, "a/x", x)
        _put(rng, file, "y", np.arange(len(x)))

    return Made(".h5", _written(rng, write), options, _damaged_hdf5, x)


def h5ad(rng: random.Random) -> Made:
    """AnnData, made or real, in HDF5 or zarr."""
    if rng.random() < 0.2:
        options = {"keep": rng.choice(["obs_cat", "int64", "obs_names"]), "format": "h5ad"}
        return Made(".zarr.zip", _real_zarr(), options, _damaged_zip)
    x = _matrix(rng).astype("f4")
    layout = rng.choice(["csr", "csr", "csc", "dense"])
    keep = rng.choice(["type", "count", "note", "maybe", "type,count,note,maybe,obs_names"])
    options = rng.choice([{}, {"keep": keep}, {"keep": keep}])

    def write(file: Any) -> None:
        n, width = x.shape
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        if layout == "dense":
            _put(rng, file, "X", x, **{"encoding-type": "array", "encoding-version": "0.2.0"})
        else:
            group, stored = file.create_group("X"), sparse.csr_array(x).asformat(layout)
            group.attrs.update({"encoding-type": f"{layout}_matrix", "encoding-version": "0.1.0", "shape": x.shape})
            for name in ("indptr", "indices", "data"):
                _put(rng, group, name, getattr(stored, name))
        string = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
        plain = {"encoding-type": "array", "encoding-version": "0.2.0"}
        frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
        obs, var = file.create_group("obs"), file.create_group("var")
        obs.attrs.update({**frame, "column-order": _text(["type", "count", "note", "maybe"])})
        _put(rng, obs, "_index", _text([f"cell {i}" for i in range(n)]), **string)
        _put(rng, obs, "count", np.arange(n), **plain)
        _put(rng, obs, "note", _text([f"ü {i % 3}" for i in range(n)]), **string)
        type_ = obs.create_group("type")
        type_.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        _put(rng, type_, "codes", (np.arange(n) % 3 - 1).astype("i1"), **plain)
        _put(rng, type_, "categories", _text(["B", "T"]), **string)
        maybe = obs.create_group("maybe")
        maybe.attrs.update({"encoding-type": "nullable-integer", "encoding-version": "0.1.0"})
        _put(rng, maybe, "values", np.arange(n), **plain)
        _put(rng, maybe, "mask", np.arange(n) % 4 == 0, **plain)
        var.attrs.update({**frame, "column-order": _text([])})
        _put(rng, var, "_index", _text([f"gene {j}" for j in range(width)]), **string)

    return Made(".h5ad", _written(rng, write), options, _damaged_hdf5, x)


@cache
def _real_zarr() -> bytes:
    return (DATA / "anndata/v0.7.8_adata.zarr.zip").read_bytes()


def _damaged_zip(rng: random.Random, data: bytes) -> bytes:
    """One member changed, or bytes of the archive."""
    if rng.random() < 0.3:
        return _damaged_some(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, payload in _damaged_files(rng, members).items():
            archive.writestr(name, payload)
    return buffer.getvalue()


def _damaged_files(rng: random.Random, files: dict[str, bytes]) -> dict[str, bytes]:
    """One file changed, gone, or another's."""
    read = [name for name in files if "/obsm" not in name and "/uns" not in name and "layers" not in name]
    name = rng.choice(read)
    payload = files[name]
    kind = rng.random()
    if kind < 0.1:
        return {key: value for key, value in files.items() if key != name}
    if kind < 0.2:
        return {**files, name: files[rng.choice(read)]}
    if payload[:1] == b"{" and kind < 0.7:
        return {**files, name: json.dumps(mutation.document(rng, json.loads(payload))).encode()}
    return {**files, name: _damaged_some(rng, payload)}


def tenx(rng: random.Random) -> Made:
    """Cells of 10x Genomics, in HDF5 or a folder."""
    x = _matrix(rng, negative=False, whole=True)
    barcodes, genes = [f"AC{i}-1" for i in range(len(x))], [f"ENS{j}" for j in range(x.shape[1])]
    if rng.random() < 0.4:
        entries = [f"{j + 1} {i + 1} {x[i, j]:g}" for i, j in zip(*np.nonzero(x), strict=True)]
        head = ["%%MatrixMarket matrix coordinate integer general", f"{x.shape[1]} {len(x)} {len(entries)}"]
        files = {
            "matrix.mtx": _joined(rng, [*head, *entries]),
            "barcodes.tsv": _joined(rng, barcodes),
            "features.tsv": _joined(rng, [f"{gene}\tname {gene}\tGene Expression" for gene in genes]),
        }

        def damage(rng: random.Random, files: dict[str, bytes]) -> dict[str, bytes]:
            name = rng.choice(list(files))
            if rng.random() < 0.1:
                return _damaged_files(rng, files)
            return {**files, name: inputs.damaged_text(rng, files[name])}

        return Made("", files, {"format": "tenx"}, damage, x)

    def write(file: Any) -> None:
        group, stored = file.create_group("matrix"), sparse.csr_array(x.astype("i4"))
        for name, values in {
            "indptr": stored.indptr.astype("i8"),
            "indices": stored.indices.astype("i8"),
            "data": stored.data,
            "shape": np.array(x.shape[::-1], "i4"),
            "barcodes": np.array(barcodes, "S"),
            "features/id": np.array(genes, "S"),
            "features/name": _text([f"name {gene}" for gene in genes]),
        }.items():
            _put(rng, group, name, values)

    names = {"names": rng.choice(["ids", "names"])}
    return Made(".h5", _written(rng, write), {"format": "tenx", **names}, _damaged_hdf5, x)


def binsparse(rng: random.Random) -> Made:
    """Binsparse, in HDF5, or in zarr as a folder or an archive."""
    x = _matrix(rng).astype("f4")
    kind = rng.choice(["CSR", "CSR", "CSC", "COOR", "COOC", "DMATR"])
    if kind in ("CSR", "CSC"):
        found = sparse.csr_array(x).asformat(kind.lower())
        stored = {
            "pointers_to_1": found.indptr.astype("u8"),
            "indices_1": found.indices.astype(rng.choice(["u8", "i4"])),
            "values": found.data,
        }
    elif kind == "DMATR":
        stored = {"values": x.reshape(-1)}
    else:
        i, j = np.nonzero(x) if kind == "COOR" else np.nonzero(x.T)
        rows, columns = (i, j) if kind == "COOR" else (j, i)
        # the first index is that by which the entries are sorted
        stored = {"indices_0": i.astype("u8"), "indices_1": j.astype("u8"), "values": x[rows, columns]}
    descriptor = {
        "version": "0.1",
        "format": kind,
        "shape": list(x.shape),
        "number_of_stored_values": len(stored["values"]),
        "data_types": {name: {"<f4": "float32"}.get(v.dtype.str, str(v.dtype)) for name, v in stored.items()},
    }
    if rng.random() < 0.4:
        form, zipped = rng.choice([2, 3]), rng.random() < 0.5
        files = _zarr(
            form, json.dumps(descriptor), tuple((name, v.tobytes(), v.dtype.str) for name, v in stored.items())
        )
        if zipped:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, payload in files.items():
                    archive.writestr(name, payload)
            return Made(".zip", buffer.getvalue(), {"format": "binsparse"}, _damaged_zip, x)
        return Made(".zarr", files, {"format": "binsparse"}, _damaged_files, x)

    def write(file: Any) -> None:
        file.attrs["binsparse"] = json.dumps({"binsparse": descriptor})
        for name, values in stored.items():
            _put(rng, file, name, values)

    return Made(".h5", _written(rng, write), {"format": "binsparse"}, _damaged_hdf5, x)


@cache
def _zarr(form: int, descriptor: str, stored: tuple[tuple[str, bytes, str], ...]) -> dict[str, bytes]:
    """Files of a hierarchy of zarr, as zarr writes it."""
    import zarr

    files: dict[str, Any] = {}
    group = zarr.open_group(zarr.storage.MemoryStore(files), mode="w", zarr_format=form)
    group.attrs["binsparse"] = json.loads(descriptor)
    for name, payload, dtype in stored:
        values = np.frombuffer(payload, dtype)
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(max(1, min(16, len(values))),))
        array[:] = values
    return {name: bytes(buffer.to_bytes()) for name, buffer in files.items()}
