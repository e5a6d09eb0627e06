"""Files made to mislead, to fill memory or to run code: each limit of docs/limits.md, and the words of its error."""

from __future__ import annotations

import _thread
import bz2
import gzip
import io
import lzma
import os
import re
import subprocess
import sys
import threading
import time
import tokenize
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from check_source import check_source, read
from peak import peak_of
from scipy import sparse

import sparsestore as ss
from sparsestore import csr
from sparsestore.columns import exactly
from sparsestore.errors import ResourceError, SourceError
from sparsestore.format import ColumnSchema
from sparsestore.kernels import tokenise
from sparsestore.sort import sorted_rows
from sparsestore.sources import text as text_module
from sparsestore.sources.base import Triples
from sparsestore.sources.npy import mapped_column
from sparsestore.sources.registry import open_source

PACKAGE = Path(__file__).parents[1] / "sparsestore"
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
COORDINATE = b"%%MatrixMarket matrix coordinate real general\n"


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def error_of(path: Path, **options: object) -> str:
    """What reading the file says, without its name, in one printable line."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(open_source(path, **options), 1 << 20)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500 + len(str(path))
    return message.removeprefix(str(path))


# ------------------------------------------------------------------------------------------------------- no code


def names_in(source: str) -> set[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN |= {"eval", "literal_eval", "exec"}


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    found = {
        (path.name, name)
        for path in PACKAGE.rglob("*.py")
        for name in names_in(path.read_text(encoding="utf-8")) & FORBIDDEN
    }
    # processes of a conversion tell each other by a pipe of their own what to do and what came of it: nothing of a file
    assert found == {("cli.py", "exec"), ("workers.py", "pickle")}
    # the other runs an empty text, for what it does to a flag of CPython
    assert re.findall(r"\bexec\(.*?\)", (PACKAGE / "cli.py").read_text(encoding="utf-8")) == ['exec("")']


def test_numpy_is_never_allowed_to_unpickle() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"allow_pickle\s*=\s*True|open_memmap|np\.fromfile\(.*object", text), path
        # what a training left behind to go on with; sources read files of numpy by themselves, in bounded memory
        loads = re.findall(r"np\.load\(.*", text)
        assert all("allow_pickle=False" in line for line in loads), path
        assert not loads or path.name == "resume.py", path


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("was-unpickled",)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_object_arrays_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([[Bomb()]], dtype=object)
    if name == "x.npy":
        np.save(name, array, allow_pickle=True)
    else:
        np.savez(name, data=array, allow_pickle=True)
    assert "holds Python objects, expected numbers: they are never unpickled" in error_of(tmp_path / name)
    if name == "x.npy":
        with pytest.raises(SourceError, match="holds Python objects"):
            mapped_column(tmp_path / name)
    assert not (tmp_path / "was-unpickled").exists()


# --------------------------------------------------------------------------------------------------------- kinds


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.svm").symlink_to("b.svm")
    (tmp_path / "b.svm").symlink_to("a.svm")
    os.mkfifo(tmp_path / "pipe.svm")
    (tmp_path / "folder.svm").mkdir()
    (tmp_path / "zero.svm").symlink_to("/dev/zero")
    for name, reason in {
        "a.svm": r"No such file or directory: '.*a\.svm'",
        "pipe.svm": r"pipe\.svm: is a pipe or a device",
        "folder.svm": r"folder\.svm: is a folder",
        "zero.svm": r"zero\.svm: is a pipe or a device",
    }.items():
        for opened in (open_source, mapped_column):
            with pytest.raises((ValueError, FileNotFoundError), match=reason):
                opened(tmp_path / name)


@pytest.mark.parametrize("name", ["x.svm", "x.mtx", "x.npy", "x.npz", "x.svm.gz", "x.mtx.zst"])
def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    assert error_of(written(tmp_path / name, b""))


@pytest.mark.parametrize("change", ["grows", "shrinks", "other"])
def test_a_text_that_changes_while_it_is_read_is_an_error(tmp_path: Path, change: str) -> None:
    line = b"1 1:1\n"
    path = written(tmp_path / "x.svm", line * 20_000)
    blocks = open_source(path).blocks(40 * 4096)
    next(blocks)
    if change == "grows":
        with path.open("ab") as file:
            file.write(line * 100_000)
    elif change == "shrinks":
        os.truncate(path, 60_000)
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match=r"x\.svm: changed while it was read"):
        list(blocks)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_an_array_that_is_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path, name: str, order: str) -> None:
    path = tmp_path / name
    x = np.random.default_rng(0).random((2000, 50)).astype(float, order)
    if name == "x.npy":
        np.save(path, x)
    else:
        sparse.save_npz(path, sparse.csr_array(x), compressed=order == "F")
    blocks = open_source(path).blocks(100_000)
    next(blocks)
    os.truncate(path, 20_000)
    with pytest.raises(SourceError, match=re.escape(str(path))):
        list(blocks)


# ---------------------------------------------------------------------------------------------------------- text


ENCODINGS = {
    "bom": (b"\xef\xbb\xbf1 1:1\n", "UTF-8"),
    "utf-16": ("1 1:1\n".encode("utf-16"), "UTF-16"),
    "utf-16-be": (b"\xfe\xff" + "1 1:1\n".encode("utf-16-be"), "UTF-16"),
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", [".svm", ".mtx"])
@pytest.mark.parametrize("case", ENCODINGS)
def test_a_byte_order_mark_is_named(tmp_path: Path, case: str, name: str, suffix: str) -> None:
    data, encoding = ENCODINGS[case]
    message = error_of(written(tmp_path / f"x{name}{suffix}", PACK[suffix](data)))
    assert message.startswith(":1: starts with a byte order mark")
    assert f" of {encoding}: expected plain ASCII or UTF-8 without one" in message


ODD = {
    "nul": (b"1 1:1\n1 1:1\0\n", ":2: the value after the colon is not a number that float64 can hold, found '1\\x00'"),
    "utf-16 without a mark": ("1 1:1\n".encode("utf-16-le"), ":1: the label is not a finite number, found '1\\x00'"),
    "invalid utf-8": (b"1 1:1\n\xff\xfe 1:1\n", ":2: the label is not a finite number, found '\\\\xff\\\\xfe'"),
    "escape sequence": (b"1 \x1b[31mred:1\n", ":1: expected index:value with a whole index, found '\\x1b[31mred:1'"),
    "turned text": ("1 \u202e1:1\n".encode(), ":1: expected index:value with a whole index, found '\\u202e1:1'"),
    "other digits": ("1 \u0661:1\n".encode(), ":1: expected index:value with a whole index"),
    "lone CR": (b"1 1:1\r0 1:2\r", ":1: expected index:value with a whole index, found '0'"),
    "long token": (b"1 " + b"x" * 999 + b"\n", ":1: expected index:value with a whole index, found 'xxx"),
    "beyond int64": (b"1 9223372036854775808:1\n", ":1: an index of more than 18 digits"),
    "qid beyond int64": (b"1 qid:9223372036854775808 1:1\n", ":1: expected qid: and a whole number"),
    "beyond float64": (b"1 1:1e400\n", ":1: the value after the colon is not a number that float64 can hold"),
    "digits without end": (b"1 1:" + b"1" * 70_000 + b"\n", ":1: the value after the colon"),
    "inf label": (b"inf 1:1\n", ":1: the label is not a finite number, found 'inf'"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_number_is_shown_escaped_and_cut(tmp_path: Path, case: str) -> None:
    data, message = ODD[case]
    assert error_of(written(tmp_path / "x.svm", data)).startswith(message)


def test_bytes_in_comments_do_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path / "x.svm", b"1 1:1 # \xff\0\x1b\n# \xef\xbb\xbf\n")
    check_source(open_source(path), np.eye(1, dtype=np.float32))


def test_400_digits_are_read_as_python_reads_them(tmp_path: Path) -> None:
    token = "0." + "123456789" * 45
    (block,) = open_source(written(tmp_path / "x.svm", f"1 1:{token}\n".encode()), dtype="float64").blocks(1 << 20)
    assert block.x.data[0] == float(token)


def test_a_long_token_that_is_no_number_takes_no_time() -> None:
    start = time.process_time()
    for _ in range(20):
        token = b"0 1:" + b"1" * 65_000 + b"z\n"
        assert tokenise.svmlight(np.frombuffer(token, np.uint8)).status == tokenise.BAD_VALUE
    assert time.process_time() - start < 2  # by pairs of digits it was a minute


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("byte", [b"1", b" ", b"#", b":", b"\0"])
def test_a_line_without_an_end_is_refused_in_bounded_memory(tmp_path: Path, byte: bytes, suffix: str) -> None:
    path = written(tmp_path / f"x.svm{suffix}", PACK[suffix](b"1 1:1\n" + byte * (10 << 20)))
    message = error_of(path, qid=False)
    assert re.match(r":2: the line has at least \d+ bytes, expected at most 1048576: check the format, or", message)


def test_a_row_may_be_as_long_as_the_page_says(tmp_path: Path) -> None:
    n = 400_000
    row = " ".join(f"{i}:1" for i in range(1, n + 1)).encode()
    path = written(tmp_path / "x.svm", b"1 " + row + b"\n")
    assert 3 << 20 < path.stat().st_size < 8 << 20
    assert ss.convert(path, tmp_path / "s.zarr").shape == (1, n)


def test_too_many_labels_name_the_line(tmp_path: Path) -> None:
    path = written(tmp_path / "x.svm", b"".join(b"%d 1:1\n" % i for i in range(70_000)))
    assert error_of(path, multilabel=True) == ":65537: more than 65536 different labels: check the format"


MATRIX_MARKET = {
    "rows": (COORDINATE + b"999999999999999999 5 1\n1 1 1\n", ":2: declares 999999999999999999 rows for 1 entries"),
    "rows beyond int64": (COORDINATE + b"9999999999999999999 5 1\n", ":2: expected the size line"),
    "entries": (COORDINATE + b"5 5 999999999999\n1 1 1\n", ":2: declares 999999999999 entries, but the file of"),
    "integer beyond float64": (
        COORDINATE.replace(b"real", b"integer") + b"1 1 1\n1 1 9007199254740993\n",
        ":3: value 9007199254740992.0, expected a whole number",
    ),
    "nan in integer": (
        COORDINATE.replace(b"real", b"integer") + b"1 1 1\n1 1 nan\n",
        ":3: value nan, expected a whole",
    ),
    "complex": (COORDINATE.replace(b"real", b"complex") + b"1 1 0\n", ":1: field 'complex' can not be stored"),
    "hermitian": (COORDINATE.replace(b"general", b"hermitian") + b"1 1 0\n", ":1: symmetry 'hermitian'"),
    "lone CR": (COORDINATE.replace(b"\n", b"\r") + b"1 1 1\r1 1 1\r", ":1: expected the banner"),
    "other blanks": (b"%%MatrixMarket matrix \x1ccoordinate real general\n1 1 0\n", ":1: layout '\\x1ccoordinate'"),
    "a long banner": (b"%%MatrixMarket matrix " + b"x" * 10_000 + b" real general\n", ":1: layout 'xxx"),
    "row beyond the header": (COORDINATE + b"2 2 1\n3 1 1\n", ":3: expected rows 1 to 2 and columns 1 to 2"),
}


@pytest.mark.parametrize("case", MATRIX_MARKET)
def test_matrix_market_is_believed_in_nothing(tmp_path: Path, case: str) -> None:
    data, message = MATRIX_MARKET[case]
    assert error_of(written(tmp_path / "x.mtx", data)).startswith(message)


# --------------------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("suffix", list(PACK)[1:])
def test_members_zeros_and_garbage_behind_compressed_data(tmp_path: Path, suffix: str) -> None:
    one = PACK[suffix](b"1 1:1\n")
    path = written(tmp_path / f"x.svm{suffix}", one + PACK[suffix](b"") + one + bytes(700))
    check_source(open_source(path), np.ones((2, 1), np.float32))
    written(path, one + b"garbage that follows")
    assert f": damaged {suffix} data before byte" in error_of(path)
    written(path, one[:-1])
    assert ": cut short: the file ends at byte" in error_of(path)


def test_many_small_members_cost_no_more_than_python_takes_for_them(tmp_path: Path) -> None:
    data = gzip.compress(b"1 1:1\n", 1, mtime=0) * 20_000
    path = written(tmp_path / "x.svm.gz", data)
    start = time.process_time()
    assert sum(len(block.x) for block in open_source(path).blocks(1 << 20)) == 20_000
    took, start = time.process_time() - start, time.process_time()
    gzip.decompress(data)
    # as much, about; where each copied what was left of 256 KiB, twenty times that
    assert took < 4 * (time.process_time() - start)


def test_a_window_of_2_gib_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
    data = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = written(tmp_path / "x.svm.zst", data.compress(b"1 1:1\n" * 50_000) + data.flush())
    assert "damaged .zst data" in error_of(path)


def bomb(suffix: str) -> bytes:
    """Text of 96 MiB, packed."""
    piece = b"1 1:1\n" * ((16 << 20) // 6)
    return b"".join([PACK[suffix](piece)] * 6) + PACK[suffix](b"x\n")


BOUND = {".gz": 0, ".bz2": 4 << 20, ".xz": 16 << 20, ".zst": 64 << 20}
CONVERT = """
import sys, threading
from pathlib import Path
import sparsestore as ss

def convert(path):
    try:
        ss.convert(path, sys.argv[3], progress=False, max_bytes="32MiB")
    except ValueError as error:
        assert str(error).startswith(path), error
        return str(error)
    raise AssertionError("was converted")

try:
    ss.convert(sys.argv[2], sys.argv[3] + ".small", progress=False, max_bytes="32MiB")
except ValueError:
    pass

def work():
    message = convert(sys.argv[1])
    assert sys.argv[4] in message, message
"""


@pytest.mark.parametrize("suffix", BOUND)
@pytest.mark.slow
def test_a_bomb_of_text_stays_within_the_bound_of_convert(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"bomb.svm{suffix}", bomb(suffix))
    small = written(tmp_path / f"small.svm{suffix}", PACK[suffix](b"1 1:1\n"))
    peak = peak_of(CONVERT, path, small, tmp_path / "s.zarr", "the label is not a finite number, found 'x'")
    assert peak <= (32 << 20) + (2 << 20) + (16 << 20) + BOUND[suffix]
    assert not (tmp_path / "s.zarr").exists()


# ---------------------------------------------------------------------------------------------------- npy and npz


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode("latin-1") + data


def described(shape: str, descr: str = "'<f8'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


HEADERS = {
    "eight terabytes": (npy(described("(1000000, 1000000)")), "has 81 bytes, expected 8000000000081 for float64"),
    "no end": (npy(described("(99999999999999999999,)")), "not a .npy header: shape '(99999999999999999999,)'"),
    "beyond int64": (npy(described("(4294967296, 4294967296)")), "not a .npy header: shape (4294967296, 4294967296)"),
    "rows without columns": (npy(described("(1000000000000, 0)")), "declares 1000000000000 rows for 0 entries"),
    "negative": (npy(described("(-2, -2)"), bytes(32)), "not a .npy header: expected a dict of descr, fortran_order"),
    "a call": (npy(described("(2, 2)", "__import__('os')")), "not a .npy header: expected a dict of descr"),
    "nested": (npy("-" * 4000 + "1"), "not a .npy header: expected a dict of descr"),
    "key twice": (npy("{'shape': (1,), 'shape': (2,), }"), "not a .npy header: has 'shape' twice"),
    "dtype": (npy(described("(2, 2)", "'<f9'")), "not a .npy header: descr '<f9' is no dtype of numpy"),
    "fields": (npy(described("(2, 2)", "[('a', '<f8')]")), "values of dtype \"[('a', '<f8')]\" can not be stored"),
    "long header": (npy(" " * 5000), "not a .npy header: has 5000 bytes, expected at most 4096"),
    "4 GiB of header": (
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        "not a .npy header: has 4294967295 bytes, expected at most",
    ),
    "cut header": (npy(described("(2, 2)"))[:40], "not a .npy header: ends after 30 of 59 bytes"),
    "escapes": (npy("{'\x1b[2J': 1}"), "not a .npy header: expected ASCII, found"),
    "one byte too many": (npy(described("(1, 1)"), bytes(9)), "has 78 bytes, expected 77 for float64 of shape (1, 1)"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_an_npy_header_is_believed_in_nothing(tmp_path: Path, case: str) -> None:
    data, message = HEADERS[case]
    path = written(tmp_path / "x.npy", data)
    assert error_of(path).removeprefix(": ").startswith(message)
    if case != "rows without columns":
        with pytest.raises(SourceError, match=re.escape(message)):
            mapped_column(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_headers_of_every_version_are_read(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, np.eye(3), version)
    check_source(open_source(tmp_path / "x.npy"), np.eye(3))


def member(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def archive(path: Path, *extra: tuple[str, bytes], packing: int = zipfile.ZIP_DEFLATED, **changed: np.ndarray) -> Path:
    arrays = {"format": np.array(b"csr"), "shape": np.array([2, 2]), "indptr": np.array([0, 1, 2])}
    arrays |= {"indices": np.array([0, 1]), "data": np.ones(2), **changed}
    with zipfile.ZipFile(path, "w", packing) as made:
        for name, array in arrays.items():
            made.writestr(f"{name}.npy", member(array))
        for name, data in extra:
            made.writestr(name, data)
    return path


def test_members_are_names_and_never_paths(tmp_path: Path) -> None:
    some = member(np.ones(2))
    for name in ("../../evil.npy", "/etc/evil.npy", "a/b.npy", "a\x1b[31m.npy", "\u202e.npy", "note.txt"):
        message = error_of(archive(tmp_path / "x.npz", (name, some)))
        assert message == f": has a member {name!r}, expected names as of numpy"
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(tmp_path / "x.npz", ("data.npy", some))
    assert error_of(path) == ": data.npy: is in the archive twice"
    assert error_of(archive(tmp_path / "x.npz", ("data", some))) == ": data: is in the archive twice"
    path = archive(tmp_path / "x.npz", *((f"m{i}.npy", some) for i in range(60)))
    assert error_of(path) == ": has 65 members, expected at most 64"


def test_a_long_table_of_contents_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", *((f"m{i}.npy", b"") for i in range(25_000)))
    assert "a read of" in error_of(path)


def test_archives_may_be_of_64_bits_and_have_comments(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    arrays = {"format": np.array("csr"), "shape": np.array([2, 2]), "indptr": np.array([0, 1, 2])}
    arrays |= {"indices": np.array([0, 1]), "data": np.ones(2)}
    with zipfile.ZipFile(path, "w") as made:
        made.comment = b"x" * 60_000
        for name, array in arrays.items():
            with made.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(member(array))
    check_source(open_source(path), np.eye(2))


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_wrong_checksum_is_found(tmp_path: Path, packing: int) -> None:
    path = archive(tmp_path / "x.npz", packing=packing, data=np.arange(2) + 2.0**40, indices=np.zeros(2, np.uint8))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as made:
        crc = made.getinfo("data.npy").CRC.to_bytes(4, "little")
    at = data.rindex(crc)
    data[at] ^= 1
    assert "Bad CRC-32 for file 'data.npy'" in error_of(written(path, bytes(data)))


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive(tmp_path / "x.npz").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    assert error_of(written(tmp_path / "x.npz", bytes(data))) == ": format.npy: is encrypted"


@pytest.mark.parametrize("case", ["more than deflate", "header"])
def test_a_member_that_declares_or_expands_to_too_much_is_refused(tmp_path: Path, case: str) -> None:
    if case == "header":
        data = b"\x93NUMPY\x02\x00" + (200 << 20).to_bytes(4, "little") + b" " * (200 << 20)
        message = error_of(archive(tmp_path / "x.npz", ("more.npy", data)))
        assert message == ": more.npy: not a .npy header: has 209715200 bytes, expected at most 4096"
        return
    data = bytearray(archive(tmp_path / "x.npz", packing=zipfile.ZIP_STORED).read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    assert "declares 1073741824 bytes, more than" in error_of(written(tmp_path / "x.npz", bytes(data)))


def test_a_bomb_of_one_row_is_refused_within_the_bound_of_convert(tmp_path: Path) -> None:
    n = 60_000_000
    path = archive(
        tmp_path / "bomb.npz",
        indptr=np.array([0, n, n]),
        shape=np.array([2, 2**40]),
        indices=np.zeros(n, np.int8),
        data=np.zeros(n, np.int8),
    )
    assert path.stat().st_size < 200_000
    small = archive(tmp_path / "small.npz")
    peak = peak_of(CONVERT, path, small, tmp_path / "s.zarr", f"row 0 has {n} entries, which takes")
    assert peak <= (32 << 20) + (2 << 20)
    assert not (tmp_path / "s.zarr").exists()


SHAPES = {
    "rows": ({"shape": np.array([2**62, 2]), "format": np.array(b"coo")}, "declares 4611686018427387904 rows"),
    "unsigned": ({"shape": np.array([2, 2**64 - 1], np.uint64)}, "has 18446744073709551615 features, expected at most"),
    "text": ({"shape": np.array(["a", "b"])}, "has shape of dtype <U1, expected two whole numbers"),
    "no characters": ({"format": np.array([0x7FFFFFFF], np.uint32).view("U1")}, "is in scipy's format"),
    "long": ({"format": np.array("x" * 9999)}, "is in scipy's format 'xxxx"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_npz_descriptions_are_believed_in_nothing(tmp_path: Path, case: str) -> None:
    changed, message = SHAPES[case]
    more = {"row": np.array([0, 1]), "col": np.array([0, 1])} if case == "rows" else {}
    assert error_of(archive(tmp_path / "x.npz", **changed, **more)).startswith(f": {message}")


def test_a_block_row_of_many_rows_is_refused(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "x.npz",
        format=np.array(b"bsr"),
        shape=np.array([4_000_000, 1]),
        indptr=np.array([0, 1]),
        indices=np.array([0]),
        data=np.zeros((1, 4_000_000, 1), np.int8),
    )
    assert "block row 0, of 4000000 rows, has 1 blocks" in error_of(path)


@pytest.mark.parametrize("offset", [-(2**63), 2**63 - 1, 2**64 - 1])
def test_diagonals_outside_are_no_entries(tmp_path: Path, offset: int) -> None:
    offsets = np.array([offset], np.uint64 if offset >= 2**63 else np.int64)
    path = archive(tmp_path / "x.npz", format=np.array(b"dia"), offsets=offsets, data=np.ones((1, 2)))
    check_source(open_source(path), np.zeros((2, 2)))


# --------------------------------------------------------------------------------------------- values, nan and inf


SPECIAL = np.array([[np.nan, np.inf, -np.inf, 0.0], [1.0, 0.0, 0.0, np.nan]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", ["svm", "mtx", "npy", "npz", "csr", "dense"])
def test_nan_and_inf_are_values_in_every_source(tmp_path: Path, source: str, dtype: str) -> None:
    x = sparse.csr_array(SPECIAL)
    coo = x.tocoo()
    path = tmp_path / f"x.{source}"
    if source == "svm":
        path.write_text("1 1:nan 2:inf 3:-inf\n1 1:1 4:nan\n")
    elif source == "mtx":
        body = "".join(f"{i + 1} {j + 1} {v}\n" for i, j, v in zip(coo.row, coo.col, coo.data, strict=True))
        path.write_bytes(COORDINATE + f"2 4 {x.nnz}\n{body}".encode())
    elif source == "npy":
        np.save(path, SPECIAL)
    elif source == "npz":
        sparse.save_npz(path, x)
    given = {"csr": x, "dense": SPECIAL}.get(source, path)
    check_source(open_source(given, dtype=dtype), SPECIAL.astype(dtype))


@pytest.mark.parametrize("source", ["npy", "npz", "coo.npz", "csr", "coo", "dense", "svm", "mtx"])
def test_a_value_beyond_the_dtype_is_an_error_and_never_inf(tmp_path: Path, source: str) -> None:
    x = np.array([[1e300, 0.0]])
    path = tmp_path / f"x.{source}"
    if source == "npy":
        np.save(path, x)
    elif source.endswith("npz"):
        sparse.save_npz(path, sparse.coo_array(x).asformat("coo" if source[0] == "c" else "csr"))
    elif source == "svm":
        path.write_text("1 1:1e300\n")
    elif source == "mtx":
        path.write_bytes(COORDINATE + b"1 2 1\n1 1 1e300\n")
    given = {"csr": sparse.csr_array(x), "coo": sparse.coo_array(x), "dense": x}.get(source, path)
    with pytest.raises(SourceError, match=r"1e\+300.* (does not fit|is beyond) float32: give"):
        read(open_source(given, dtype="float32"))


def test_a_sum_of_duplicates_does_not_wrap_around() -> None:
    x = sparse.csr_array((np.array([200, 100], np.uint8), np.array([0, 0]), np.array([0, 2])), shape=(1, 1))
    with pytest.raises(SourceError, match="row 0, feature 0: the sum of its duplicates does not fit uint8: give a"):
        read(open_source(x))
    assert read(open_source(x, dtype="int32"))[0].toarray().tolist() == [[300]]


def test_integers_do_not_wrap_around_in_a_narrower_dtype(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[2**31]]))
    with pytest.raises(SourceError, match="value 2147483648 does not fit int32: give a wider dtype="):
        read(open_source(tmp_path / "x.npy", dtype="int32"))


# -------------------------------------------------------------------------------------------- matrices in memory


def broken(layout: str) -> object:
    x = sparse.coo_array(np.eye(4)).asformat(layout)
    if layout == "coo":
        x.coords = (np.array([0, 1, 2, 2**30]), x.coords[1])
    elif layout == "csc":
        x.indices[-1] = 2**30
    elif layout == "indptr":
        x.indptr[1] = 2**30
    return x


@pytest.mark.parametrize("layout", ["coo", "csc", "csr"])
def test_a_broken_matrix_of_scipy_is_an_error_and_no_crash(layout: str) -> None:
    if layout == "csr":
        x = sparse.csr_array(np.eye(4))
        x.indices[-1] = 2**30
    else:
        x = broken(layout)
    with pytest.raises(SourceError, match="1073741824"):
        read(open_source(x))
    if layout != "coo":
        x = sparse.coo_array(np.eye(4)).asformat(layout)
        x.indptr = x.indptr[:-2]
        with pytest.raises(SourceError, match=r"indptr|too short"):
            read(open_source(x))


def test_a_row_too_long_to_sort_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    n = 1_000_000
    triples = (Triples(np.zeros(n, int), np.arange(n), np.ones(n)) for _ in range(1))
    with pytest.raises(
        ResourceError, match=r"row 0 has 1000000 entries, which take \d+ bytes to sort, expected at most"
    ):
        list(sorted_rows(triples, 4, n, dtype=None, max_bytes=1 << 20, scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ names, messages


def sparsestore(*arguments: bytes | str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable.encode(), b"-m", b"sparsestore"]
    command += [argument.encode() if isinstance(argument, str) else argument for argument in arguments]
    return subprocess.run(command, capture_output=True, check=False, env=environment)


@pytest.mark.parametrize("name", [b"\xff\x1b[31m\nred", pytest.param("ü".encode(), marks=pytest.mark.slow)], ids=repr)
def test_names_that_are_no_text_neither_break_messages_nor_reach_the_terminal(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name + b".svm")  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"1 1:1\n")
    store = os.path.join(os.fsencode(tmp_path), name + b".zarr")  # noqa: PTH118
    for arguments in (["convert", path, store], ["info", store], ["verify", store], ["convert", path, store]):
        for flags in ([], ["--json"]):
            if arguments[0] == "convert" and flags:
                continue
            done = sparsestore(*arguments, *flags)
            assert b"unexpected" not in done.stderr
            assert b"Traceback" not in done.stderr
            for output in (done.stdout, done.stderr):
                shown = output.decode()  # always text
                assert all(c.isprintable() or c == "\n" for c in shown)
            assert done.returncode == (1 if b"is there already" in done.stderr else 0), done.stderr


def test_a_column_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.ones(1))
    path = written(tmp_path / "x.mtx", COORDINATE + b"1 1 1\n1 1 1\n")
    column = b"\xff=" + os.fsencode(tmp_path / "y.npy")
    done = sparsestore("convert", str(path), str(tmp_path / "s.zarr"), "--column", column)
    assert done.returncode == 1
    assert b"is no valid text" in done.stderr
    np.save(tmp_path / "o.npy", np.array([None]), allow_pickle=True)
    done = sparsestore("convert", str(path), str(tmp_path / "s.zarr"), "--column", f"y={tmp_path / 'o.npy'}")
    assert b"o.npy: holds Python objects" in done.stderr


def test_text_of_numbers_that_are_no_characters_is_refused() -> None:
    values = np.array([0x7FFFFFFF], np.uint32).view("U1")
    with pytest.raises(ValueError, match="column 'name' has text with the number 0x7fffffff, which is no character"):
        exactly("name", values, ColumnSchema("string"))


# ------------------------------------------------------------------------------------------------------- threads


def test_a_reader_that_is_left_behind_is_let_go_without_waiting(tmp_path: Path) -> None:
    """A generator that garbage collection ends may not wait: it may run inside the lock that a thread's end needs."""
    path = written(tmp_path / "x.svm", b"1 1:1\n" * 50_000)
    before = _thread._count()
    blocks = open_source(path).blocks(40 * 4096)
    next(blocks)
    assert _thread._count() > before
    with threading._shutdown_locks_lock if hasattr(threading, "_shutdown_locks_lock") else threading.Lock():
        blocks.close()
    deadline = time.monotonic() + 5
    while _thread._count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _thread._count() <= before


@pytest.mark.trust
def test_a_campaign_finds_a_defence_that_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trust import parsers

    from sparsestore.sources import npz

    cases = [4 * k + 3 for k in range(120)]
    assert parsers.run(cases, tmp_path).faults == []
    with monkeypatch.context() as patch:
        patch.setattr(npz, "_DAMAGE", (OSError,))
        assert any("instead of ValueError" in fault for fault in parsers.run(cases, tmp_path).faults)
    with monkeypatch.context() as patch:
        patch.setattr(csr, "check", lambda *_, **__: None)
        patch.setattr(parsers.csr, "check", lambda *_, **__: None)
        found = [4 * k + 1 for k in range(60)]
        patch.setattr(tokenise, "entries", lambda *a, **k: tokenise.entries_numpy(*a, **k)._replace(offset=0))
        assert any("the offence is in line" in fault for fault in parsers.run(found, tmp_path).faults)
    bomb_case = 4 * (parsers.BOMBS - 1)
    assert parsers.run([bomb_case], tmp_path).faults == []
    with monkeypatch.context() as patch:
        whole = text_module.TextFile.pieces
        patch.setattr(text_module.TextFile, "pieces", lambda self, n, _, **k: whole(self, n, 1 << 40, **k))
        found = [4 * (parsers.BOMBS * k - 1) for k in range(1, 7)]
        assert any("held" in fault for fault in parsers.run(found, tmp_path).faults)
