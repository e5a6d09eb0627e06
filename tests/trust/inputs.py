"""Inputs of the campaign `parsers`: files of each format, made and then damaged, from a random generator alone."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from scipy import sparse

DATA = Path(__file__).parent.parent / "data"
PACK = {
    ".gz": lambda text: gzip.compress(text, 1, mtime=0),
    ".bz2": lambda text: bz2.compress(text, 1),
    ".xz": lambda text: lzma.compress(text, preset=0),
    ".zst": lambda text: zstandard.ZstdCompressor(level=1, write_checksum=True).compress(text),
}
SVMLIGHT = (
    "agaricus.txt.test.gz",
    "a9a.t.gz",
    "heart_scale/heart_scale",
    "lightgbm/rank_head.train",
    "sklearn_svmlight/svmlight_classification.txt",
    "sklearn_svmlight/svmlight_multilabel.txt",
    "gensim/testcorpus.svmlight",
)
MATRIX_MARKET = (
    "tenx/matrix.mtx.gz",
    "ginkgo_mtx/1138_bus.mtx",
    "gunrock_mtx/chesapeake.mtx",
    "gensim/testcorpus.mm",
    "gensim/test_corpus_small.mm",
    "gensim/dtm_test.mm",
)
BYTES = [b"\0", b"\r", b"\n", b"\r\n", b"\t", b" ", b"#", b"%", b":", b",", b".", b"-", b"+", b"e", b"\x1b", b"\xff"]
BYTES += [b"\xef\xbb\xbf", b"\xff\xfe", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xa0", b"\xe2\x80\xa8", b"\xd9\xa3", b"q"]
TOKENS = re.split(
    r"\s+",
    """0 1 2 -1 +1 1. .5 . + - -- 1e5 1e400 -1e400 1e-400 1e39 5e-324 2.2250738585072011e-308 nan -nan inf -inf Infinity
    infinit 0x10 1_0 1e 1e+ 9007199254740993 16777217 4294967296 2147483646 2147483647 2147483648 999999999999999999
    1000000000000000000 9223372036854775807 9223372036854775808 18446744073709551616 1:1 0:1 3:nan 5:inf 2: :2 : 1:2:3
    1:1e400 7:1e300 qid:3 qid: qid:x qid:1:1 qid:999999999999999999 q 2147483647:1 2147483648:1 999999999999999999:1
    1000000000000000000:1 00001:1 1,2 1,,2 ,1 1, nan,1 0,1,2 # #x % True python""",
)
TOKENS += ["9" * 400, "1" * 400 + ":1", "1:" + "3" * 400, "0." + "0" * 350 + "1", "1:" + "1" * 66_000, ""]
WORDS = re.split(
    " ", "matrix coordinate array real integer pattern complex general symmetric skew-symmetric hermitian Real"
)


@cache
def corpus(name: str) -> bytes:
    """The first lines of a real file, together at most 3 KB."""
    raw = (DATA / name).read_bytes()
    text = gzip.decompress(raw) if name.endswith(".gz") else raw
    return text[: text.rfind(b"\n", 0, 3000) + 1] or text[:3000]


# ------------------------------------------------------------------------------------------------------------- text


def svmlight(rng: random.Random) -> bytes:
    """A sound svmlight file, real or made."""
    if rng.random() < 0.5:
        return some_lines(rng, corpus(rng.choice(SVMLIGHT)))
    qid, labels = rng.random() < 0.2, rng.random() < 0.2
    lines = []
    for row in range(rng.randrange(12)):
        label = ",".join(str(rng.randrange(4)) for _ in range(rng.randrange(3))) if labels else f"{number(rng)}"
        indices = sorted(rng.sample(range(1, 40), rng.randrange(6)))
        line = " ".join([label, *(f"qid:{row // 3}" for _ in range(qid)), *(f"{i}:{number(rng)}" for i in indices)])
        lines.append(line + rng.choice(["", "", "", " # note", "\t", "\r"]))
    return "\n".join(lines).encode() + rng.choice([b"\n", b""])


def number(rng: random.Random) -> str:
    """A number as files spell it."""
    value = rng.choice(
        [rng.randrange(-3, 9), round(rng.uniform(-9, 9), 3), rng.gauss(0, 1) * 10.0 ** rng.randrange(-30, 30)]
    )
    return rng.choice([repr(value), f"{value:.4g}", f"{value:.17e}", f"{value:+g}"])


def some_lines(rng: random.Random, text: bytes) -> bytes:
    """Some consecutive lines of a text."""
    lines = text.splitlines(keepends=True)
    start = rng.randrange(len(lines))
    return b"".join(lines[start : start + rng.randrange(1, 20)])


def matrix_market(rng: random.Random) -> bytes:
    """A sound Matrix Market file, real or made; a real one is cut, its size line changed to fit."""
    if rng.random() < 0.3:
        text = corpus(rng.choice(MATRIX_MARKET))
        head = re.match(rb"(?:%[^\n]*\n)*[ \t]*\d+[ \t]+\d+[ \t]+", text)
        if head:
            body = text[head.end() :].partition(b"\n")[2]
            body = body[: body.rfind(b"\n") + 1]
            return head.group() + b"%d\n" % sum(1 for line in body.split(b"\n") if line.strip()) + body
    layout, field = rng.choice(["coordinate", "coordinate", "array"]), rng.choice(["real", "integer", "pattern"])
    symmetry = rng.choice(["general", "symmetric", "skew-symmetric"])
    if layout == "array":
        field, symmetry = rng.choice(["real", "integer"]), "general"
    rows = rng.randrange(1, 9)
    columns = rows if symmetry != "general" else rng.randrange(1, 9)
    lines = [f"%%MatrixMarket matrix {layout} {field} {symmetry}"] + ["% note"] * rng.randrange(3)

    def value() -> str:
        return str(rng.randrange(-9, 99)) if field == "integer" else number(rng)

    if layout == "array":
        lines += [f"{rows} {columns}", *(value() for _ in range(rows * columns))]
    else:
        places = [(i, j) for i in range(1, rows + 1) for j in range(1, columns + 1)]
        if symmetry != "general":
            places = [(i, j) for i, j in places if i > j or (i == j and symmetry == "symmetric")]
        places = rng.sample(places, rng.randrange(len(places) + 1))
        lines.append(f"{rows} {columns} {len(places)}")
        lines += [f"{i} {j}" + ("" if field == "pattern" else f" {value()}") for i, j in places]
    return "\n".join(lines).encode() + rng.choice([b"\n", b""])


def damaged_text(rng: random.Random, text: bytes) -> bytes:
    """The text with up to four changes: of tokens, lines, line ends and bytes."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        text = rng.choice([_token, _token, _token, _lines, _ends, damaged_bytes])(rng, text)
    return text


def _token(rng: random.Random, text: bytes) -> bytes:
    found = list(re.finditer(rb"[^\s:,]+", text))
    if not found:
        return text
    token = rng.choice(found[: 12 if rng.random() < 0.3 else None])
    new = rng.choice(WORDS if rng.random() < 0.1 else TOKENS).encode()
    end = token.end() if rng.random() < 0.8 else token.start()
    return text[: token.start()] + new + (b" " if end == token.start() else b"") + text[end:]


def _lines(rng: random.Random, text: bytes) -> bytes:
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.insert(at, rng.choice(lines))
        case 1:
            del lines[at]
        case 2:
            rng.shuffle(lines)
        case 3:
            lines[at] = rng.choice(
                [b"", b"#", b"% c", b"\r", b" " * rng.randrange(5000), lines[at] * rng.randrange(200)]
            )
        case _:
            lines[at] += b" " + rng.choice(lines)
    return b"\n".join(lines)


def _ends(rng: random.Random, text: bytes) -> bytes:
    return text.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b" \n", b"", b"\0\n", b"\x85", b"\n\r"]))


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, put in, taken out, doubled, cut; or all of it in UTF-16."""
    if not data:
        return rng.choice(BYTES)
    at = rng.randrange(len(data))
    stop = min(len(data), at + rng.choice([1, 2, 4, 8, 64, 1024]))
    match rng.randrange(9):
        case 0 | 1:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 2:
            return data[:at] + rng.choice(BYTES) + data[at:]
        case 3:
            return data[:at] + rng.choice(BYTES) + data[at + 1 :]
        case 4:
            return data[:at] + data[stop:]
        case 5:
            return data[:stop] + data[at:]
        case 6:
            return data[:at]
        case 7:
            return data[:at] + rng.randbytes(stop - at) + data[stop:]
        case _:
            if rng.random() < 0.1:
                return data.decode("latin-1").encode(rng.choice(["utf-16", "utf-16-le", "utf-8-sig"]))
            return data + rng.choice([data[at:stop], b"\0" * rng.randrange(64), rng.randbytes(9)])


def packed(rng: random.Random, text: bytes, suffix: str) -> bytes:
    """Text compressed, as one member or several, and sometimes damaged after that."""
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.choice([0, 0, 1, 3])))
    data = b"".join(PACK[suffix](text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    for _ in range(rng.choice([0, 0, 1, 2])):
        data = damaged_bytes(rng, data)
    return data


# ------------------------------------------------------------------------------------------------- npy and npz


def npy(rng: random.Random) -> bytes:
    """A ``.npy`` file of a small matrix, sound or with a damaged header or data."""
    dtype = rng.choice(re.split(" ", "? i1 u1 <i2 >i4 i8 u8 f2 f4 f8 >f8 c8 S3 U2 O M8[s] f4,i2"))
    shape = rng.choice([(3, 4), (5, 2), (1, 1), (0, 3), (3, 0), (4,), (), (2, 2, 2), (300, 3)])
    kind = np.random.default_rng(rng.getrandbits(32))
    array = kind.integers(0, 3, shape).astype("i8")
    array = array.astype(dtype, order=rng.choice("CF")) if dtype != "f4,i2" else np.zeros(shape, dtype)
    if array.dtype.kind == "f" and array.size and rng.random() < 0.3:
        array.reshape(-1)[0] = rng.choice([np.nan, np.inf, -0.0])
    data = member(array, rng.choice([(1, 0), (1, 0), (2, 0), (3, 0)]))
    return _damaged_npy(rng, data)


def member(array: np.ndarray[Any, Any], version: tuple[int, int] = (1, 0)) -> bytes:
    """An array as a ``.npy`` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle=True)
    return buffer.getvalue()


HEADERS = [
    (rb"\d+", re.split(rb" ", b"0 1 7 -1 2147483648 9223372036854775807 9223372036854775808 1e3 True 4L " + b"9" * 40)),
    (
        rb"'[^']*'",
        re.split(rb" ", b"'|O' '<f8' '>f8' '<f16' '<c16' '|V8' '<M8[s]' 'descr' 'shape' '' '<f9999999999' 3 'i'"),
    ),
    (rb"True|False", [b"True", b"False", b"0", b"None", b"1 if 1 else 2", b"__import__('os')"]),
    (rb"[(){},:]", [b"", b"(", b")", b"((", b"{", b"}", b"[", b",", b"-" * 300, b"(" * 300]),
]


def _damaged_npy(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice([0, 1, 1, 2])):
        if rng.random() < 0.5:
            data = damaged_bytes(rng, data)
            continue
        length = 8 + (2 if data[6:7] == b"\1" else 4)
        size = min(int.from_bytes(data[8:length], "little"), len(data))
        header = data[length : length + size]
        pattern, words = rng.choice(HEADERS)
        if found := list(re.finditer(pattern, header)):
            place = rng.choice(found)
            header = header[: place.start()] + rng.choice(words) + header[place.end() :]
        if rng.random() < 0.1:
            header += b" " * rng.randrange(20_000)
        said = len(header) if rng.random() < 0.9 else rng.randrange(1 << (8 * (length - 8)))
        data = (
            data[:8]
            + (said % (1 << (8 * (length - 8)))).to_bytes(length - 8, "little")
            + header
            + data[length + size :]
        )
    return data


LAYOUTS = ("csr", "csc", "coo", "bsr", "dia")


def npz(rng: random.Random) -> bytes:
    """A ``.npz`` file of a small sparse matrix, sound, or its arrays, its members or its bytes damaged."""
    layout = rng.choice(LAYOUTS)
    kind = np.random.default_rng(rng.getrandbits(32))
    shape = rng.choice([(6, 4), (4, 6), (1, 1), (0, 3), (3, 0), (40, 2)])
    dense = (kind.random(shape) < 0.3) * kind.integers(-3, 9, shape)
    x = sparse.coo_array(dense.astype(rng.choice(["f4", "f8", "i4", "u1", "?"]))).asformat(layout)
    names = {"coo": ("row", "col", "data"), "dia": ("offsets", "data")}.get(layout, ("indptr", "indices", "data"))
    arrays = {name: np.array(getattr(x, name)) for name in names}
    arrays |= {"shape": np.array(x.shape), "format": np.array(layout if rng.random() < 0.2 else layout.encode())}
    if rng.random() < 0.1 and x.data.dtype.kind == "f":
        arrays["data"] = arrays["data"].astype(">f8")
    order = list(arrays)
    rng.shuffle(order)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        name = rng.choice(order)
        arrays[name] = _damaged_array(rng, arrays[name])
    members = [(f"{name}.npy", member(arrays[name], (1, 0))) for name in order]
    if rng.random() < 0.15:
        members = _damaged_members(rng, members)
    buffer = io.BytesIO()
    packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_BZIP2 if rng.random() < 0.01 else packing
            with archive.open(info, "w", force_zip64=rng.random() < 0.2) as file:
                file.write(data)
        if rng.random() < 0.05:
            archive.comment = rng.randbytes(9)
    data = buffer.getvalue()
    for _ in range(rng.choice([0, 0, 1, 2])):
        data = damaged_bytes(rng, data)
    return data


def _damaged_array(rng: random.Random, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    if array.dtype.kind in "biuf" and array.size and rng.random() < 0.6:
        ends = [np.iinfo(array.dtype).max, np.iinfo(array.dtype).min] if array.dtype.kind in "iu" else []
        at = rng.randrange(array.size)
        array.reshape(-1)[at] = array.dtype.type(rng.choice([0, 1, 2, 5, *ends]))
        return array
    match rng.randrange(6):
        case 0:
            return np.delete(array, 0) if array.size else array
        case 1:
            return np.append(array, array[-1:]) if array.ndim == 1 else array.reshape(-1)
        case 2:
            kinds = (
                ["S9", "U9", "O"] if array.dtype.kind in "SUO" else ["u8", "i1", "f8", ">i4", "S9", "U9", "O", "c16"]
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of complex numbers that lose a part
                return array.astype(rng.choice(kinds))
        case 3:
            return np.asfortranarray(array)
        case 4:
            return (
                array[::-1].copy() if array.ndim else np.array(rng.choice(["csr", "coo", "x" * 999, "\x1b[2J", b"bsr"]))
            )
        case _:
            return array.reshape((*array.shape, 1))


def _damaged_members(rng: random.Random, members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    name, data = rng.choice(members)
    more = ["../../evil.npy", "/etc/evil.npy", "a\x1b[31m.npy", "x/", "data", "note.txt", "\u202e.npy"]
    match rng.randrange(4):
        case 0:
            return [*members, (rng.choice(more), data)]
        case 1:
            return [other for other in members if other[0] != name]
        case 2:
            return [(n, _damaged_npy(rng, d)) if n == name else (n, d) for n, d in members]
        case _:
            return members + [(f"m{i}.npy", data) for i in range(rng.choice([3, 100]))]


# ------------------------------------------------------------------------------------------------------------ bombs


def bomb(rng: random.Random, source: str) -> tuple[str, bytes]:
    """A small file that makes some tens of megabytes where it is believed: its suffix and bytes."""
    n = 48 << 20
    if source == "npy":
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rng.choice([10**9, 10**15])}, 4), }}".encode()
        return ".npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(999)
    if source == "npz":
        long = (
            member(np.zeros(n, np.int8))
            if rng.random() < 0.7
            else b"\x93NUMPY\x02\x00" + (n).to_bytes(4, "little") + b" " * n
        )
        small = {"indptr": np.array([0, n, n]), "shape": np.array([2, 2**40]), "format": np.array(b"csr")}
        members = {name: member(array) for name, array in small.items()} | {"data": long, "indices": long}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)
        return ".npz", buffer.getvalue()
    suffix = rng.choice(list(PACK))
    head = b"%%MatrixMarket matrix coordinate pattern general\n9 9 12345678901\n" if source == "matrix_market" else b""
    line = rng.choice([b"0", b"1 ", b"1 1", b"%", b"#", b":", b"1 1\n", b"1 1:1\n", b"\n", b"\0", b"1:1 ", b"nan "])
    return {"matrix_market": ".mtx", "svmlight": ".svm"}[source] + suffix, PACK[suffix](head + line * (n // len(line)))
