"""Kernels are loaded from files without numba; whatever is wrong with file, machine or arguments only costs time."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsestore.kernels import compiler, gather, image, native
from sparsestore.kernels.image import UnsuitableError
from sparsestore.kernels.native import Kernel

ROOT = Path(__file__).parents[1]
Array = NDArray[Any]
INDPTR, DESCENT = np.array([0, 2, 4]), np.array([1, 2, 5, 3], np.int32)  # row 1 descends


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for machine code."""
    for name in [name for name in os.environ if name.startswith("NUMBA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither compile nor call by way of numba."""

    def refuse(*_: object) -> None:
        raise AssertionError("numba is used")

    monkeypatch.setattr(compiler, "object_file", refuse)
    monkeypatch.setattr(Kernel, "compiled", property(refuse))


def first_descent() -> Kernel:
    """The kernel as a new process has it."""
    return Kernel(gather.first_descent.function)


def is_native(kernel: Kernel) -> bool:
    return bool(kernel._loaded) and None not in kernel._loaded.values()


def objects(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.code"))


def test_a_kernel_is_compiled_once(cache: Path, request: pytest.FixtureRequest) -> None:
    assert first_descent()(INDPTR, DESCENT) == 1
    assert len(objects(cache)) == 1
    request.getfixturevalue("without_numba")
    assert first_descent()(INDPTR, DESCENT) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_file_is_compiled_anew(cache: Path, damage: str) -> None:
    first_descent()(INDPTR, DESCENT)
    (path,) = objects(cache)
    whole = path.read_bytes()
    if damage == "flip":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "foreign":  # whole, but of another kernel
        Kernel(gather.locate.function)(*[np.zeros(0, np.int64)] * 5)
        path.write_bytes(next(other for other in objects(cache) if other != path).read_bytes())
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    kernel = first_descent()
    assert kernel(INDPTR, DESCENT) == 1
    assert is_native(kernel)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "value"),
    [("_processor", lambda: b"another"), ("_source", lambda file: f"another {file}")],
    ids=["processor", "source"],
)
def test_the_key_changes_with(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    kinds = (INDPTR.dtype, 1, DESCENT.dtype, 1)
    before = first_descent().key(kinds)
    monkeypatch.setattr(native, name, value)
    assert first_descent().key(kinds) != before


def test_the_key_knows_the_source_of_what_a_kernel_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_source", lambda file: f"another {file}" if file == __file__ else file)
    plain, complete = Kernel(gather.first_descent.function), Kernel(gather.first_descent.function, needs=intrinsics)
    assert plain.key(()) != complete.key(())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says")
def test_the_processor_is_known_where_sys_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(native.Path, "read_bytes", refuse)
    found = {native._processor.__wrapped__() for _ in range(5)}
    assert len(found) == 1  # without its frequency, which changes all the time
    assert {line.partition(b"\t")[0] for line in found.pop().splitlines()} >= {b"flags", b"model name"}


def test_the_key_changes_with_kernel_and_dtypes() -> None:
    i, j = np.dtype("i4"), np.dtype("u4")
    keys = {kernel.key((a, 1, b, 1)) for kernel in (gather.locate, gather.densify) for a in (i, j) for b in (i, j)}
    assert len(keys) == 8


def test_a_folder_that_can_not_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(native, "folders", lambda: [tmp_path / "file", tmp_path / "home" / "cache"])
    assert first_descent()(INDPTR, DESCENT) == 1
    assert len(objects(tmp_path / "home" / "cache")) == 1
    monkeypatch.setattr(native, "folders", lambda: [tmp_path / "file"])
    kernel = first_descent()
    assert kernel(INDPTR, DESCENT) == 1
    assert is_native(kernel)


def test_folders_are_beside_the_modules_then_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert native.folders() == [Path(native.__file__).parent / "__pycache__", Path("/somewhere/sparsestore")]
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert native.folders()[1] == Path("~/.cache/sparsestore").expanduser()


# ---- what goes to numba


def test_arrays_with_gaps_and_arguments_out_of_range_go_to_numba(cache: Path) -> None:
    wide = np.zeros(8, np.int32)
    wide[::2] = DESCENT
    kernel = first_descent()
    assert kernel(INDPTR, wide[::2]) == 1
    assert kernel(INDPTR[::-1][::-1], np.frombuffer(b"\0" + DESCENT.tobytes(), "i4", offset=1)) == 1
    out = np.zeros(1, np.uint64)
    gather.fill(2**64 - 1, np.ones(1, np.int64), np.zeros(1, np.int64), out)
    assert out.tolist() == [2**64 - 1]
    assert objects(cache) == []


def test_an_output_that_can_not_be_written_is_refused_by_numba() -> None:
    out = np.zeros(1)
    out.flags.writeable = False
    with pytest.raises(Exception, match=r"(?i)readonly|immutable"):
        gather.fill(1.0, np.ones(1, np.int64), np.zeros(1, np.int64), out)
    assert out.tolist() == [0]


@pytest.mark.parametrize("arguments", [(), (INDPTR,), (INDPTR, DESCENT, DESCENT)])
def test_a_wrong_number_of_arguments_is_a_type_error(arguments: tuple[Array, ...]) -> None:
    with pytest.raises(TypeError):
        gather.first_descent(*arguments)


WISHES = """
import numpy as np
from sparsestore.kernels import gather
kernel = gather.first_descent
assert kernel(np.array([0, 2, 4]), np.array([1, 2, 5, 3], np.int32)) == 1
assert list(kernel._loaded.values()) == [None]
"""


@pytest.mark.parametrize(("name", "value"), [("NUMBA_CPU_NAME", "generic"), ("NUMBA_DISABLE_JIT", "1")])
def test_wishes_for_numba_are_heard(cache: Path, name: str, value: str) -> None:
    # in a process of its own: numba reads them when it is imported, and would keep them for the tests that follow
    environment = {**os.environ, name: value, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WISHES], check=True, env=environment)
    assert objects(cache) == []


def test_another_platform_goes_to_numba(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PLATFORMS", ())
    kernel = first_descent()
    assert kernel(INDPTR, DESCENT) == 1
    assert not is_native(kernel)


def test_a_process_that_may_not_make_memory_executable_asks_numba(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image, "load", refuse)
    kernel = first_descent()
    assert kernel(INDPTR, DESCENT) == 1
    assert not is_native(kernel)


@pytest.mark.parametrize(("name", "value"), [("_DATA", 24), ("_SHAPE", 24), ("_STRIDES", 24), ("_SHAPE", 40)])
def test_arrays_of_another_layout_go_to_numba(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    compiler.check_arrays.__wrapped__()
    monkeypatch.setattr(compiler, name, value)
    monkeypatch.setattr(compiler, "check_arrays", compiler.check_arrays.__wrapped__)
    kernel = first_descent()
    assert kernel(INDPTR, DESCENT) == 1
    assert not is_native(kernel)


def allocates(values: Array) -> int:
    return len(np.concatenate((values, values)))


def raises(values: Array) -> int:
    if len(values) > 2:
        raise ValueError("too long")
    return len(values)


def gives_a_float(values: Array) -> int:
    return values[0] * 0.5  # type: ignore[no-any-return]


@pytest.mark.parametrize(("function", "result"), [(allocates, 4), (gives_a_float, 0.5)])
def test_code_that_needs_more_than_itself_goes_to_numba(cache: Path, function: Any, result: float) -> None:
    kernel = Kernel(function)
    assert kernel(np.ones(2, np.int64)) == result
    assert not is_native(kernel)
    assert objects(cache) == []


def test_a_kernel_that_raises_goes_to_numba(cache: Path) -> None:
    kernel = Kernel(raises)
    assert kernel(np.ones(2)) == 2
    with pytest.raises(ValueError, match="too long"):
        kernel(np.ones(3))
    assert not is_native(kernel)


def intrinsics() -> dict[str, Any]:
    """crc32c of eight bytes: one instruction of x86-64 with SSE 4.2."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        crc32 = builder.module.declare_intrinsic("llvm.x86.sse42.crc32.64.64", (), ir.FunctionType(word, [word, word]))
        return builder.call(crc32, arguments)

    @intrinsic  # type: ignore[untyped-decorator]
    def crc32_of_eight(typing: Any, crc: Any, eight: Any) -> Any:
        return types.uint64(types.uint64, types.uint64), generate

    return {"crc32_of_eight": crc32_of_eight}


def crc32c(words: Array) -> int:
    crc = np.uint64(0xFFFFFFFF)
    for i in range(len(words)):
        crc = crc32_of_eight(crc, words[np.uint64(i)])  # type: ignore[name-defined]  # noqa: F821
    return np.int64(crc ^ np.uint64(0xFFFFFFFF))  # type: ignore[return-value]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an instruction of x86-64")
def test_a_kernel_may_need_names_that_only_numba_can_make(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import google_crc32c

    words = np.random.default_rng(0).integers(0, 2**63, 1000, np.uint64)
    make = Kernel(needs=intrinsics)
    kernel = make(crc32c)
    assert kernel(words) == google_crc32c.value(words.tobytes())
    assert is_native(kernel)
    assert make(crc32c).compiled(words) == kernel(words)
    monkeypatch.setattr(compiler, "object_file", None)
    kept = make(crc32c)
    assert kept(words) == kernel(words)
    assert is_native(kept)
    assert "crc32_of_eight" not in globals()


def test_what_is_lacking_is_reported_to_the_caller(cache: Path) -> None:
    def lacking() -> dict[str, Any]:
        raise OSError("no such instruction")

    with pytest.raises(OSError, match="no such instruction"):
        Kernel(crc32c, needs=lacking)(np.zeros(1, np.uint64))


IR = """
declare i32 @absent(i64)
declare double @llvm.sin.f64(double)
define i32 @bare(i64* %result, i8** %error, i64 %x) {
  BODY
}
"""


@pytest.mark.parametrize(
    ("body", "kinds", "reason"),
    [
        ("%r = call i32 @absent(i64 %x)\nret i32 0", (int, 0), "it needs absent"),
        ("%s = call double @llvm.sin.f64(double 0.5)\nstore double %s, double* @d\nret i32 0", (int, 0), "needs"),
        ("ret i32 0", (float, 0), r"parameters \['ptr', 'ptr', 'i64'\], expected \['ptr', 'ptr', 'double'\]"),
        ("ret i32 0", (INDPTR.dtype, 1), "parameters"),
        ("ret i32 0\n}\ndefine i32 @other(i64 %x) {\nret i32 0", (int, 0), "2 functions"),
        ("%r = trunc i64 %x to i32\nret i32 %r", (int, 0), "it can raise exceptions"),
    ],
    ids=["function", "library", "number", "array", "two", "exceptions"],
)
def test_code_is_refused_that_could_not_be_loaded(body: str, kinds: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(UnsuitableError, match=reason):
        image.build(compiler.isolate(IR.replace("BODY", body) + "@d = external global double", "name", kinds), "name")


def test_what_the_bare_function_does_not_call_is_not_needed() -> None:
    assert image.build(compiler.isolate(IR.replace("BODY", "ret i32 0"), "name", (int, 0)), "name")


def mixed(first: Array, factor: int, out: Array, shift: float) -> int:
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            for k in range(first.shape[2]):
                out[i, j] += first[i, j, k] * factor + shift
    return first.size


def test_arrays_of_any_dimensions_and_numbers_arrive_as_they_were_given(cache: Path) -> None:
    first, out = np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.zeros((2, 3))
    kernel = Kernel(mixed)
    assert kernel(first, -(2**40), out, 0.125) == 24
    assert is_native(kernel)
    np.testing.assert_array_equal(out, first.sum(axis=2) * -(2.0**40) + 0.5)


@pytest.mark.parametrize("dtype", ["bool", *"bhilqBHILQfd"])
def test_every_dtype_of_a_store_is_loaded_from_a_file(dtype: str) -> None:
    kernel = Kernel(gather.densify.function)
    data, out = np.array([1, 0, 1], dtype), np.zeros((2, 3), dtype)
    kernel(np.array([0, 2, 3]), np.array([0, 2, 1], np.int32), data, out)
    assert is_native(kernel)
    np.testing.assert_array_equal(out, np.array([[1, 0, 0], [0, 1, 0]], dtype))


# ---- threads and processes

PROBE = """
import os, sys
import numpy as np
import sparsestore as ss
store = ss.open(sys.argv[1])
batch = next(iter(store.loader(64, shuffle=True, seed=1)))
dense = batch.x.toarray().sum() + store[3:9].sum()
if "fork" in sys.argv:
    from sparsestore.kernels import gather
    child = os.fork()
    found = gather.first_descent(np.array([0, 2]), np.array([1, 0], np.uint32))
    if not child:
        os._exit(found)
    assert os.waitpid(child, 0)[1] == found == 0
print(dense, "numba" in sys.modules or "llvmlite" in sys.modules)
"""


@pytest.fixture
def start(tmp_path: Path, cache: Path) -> Any:
    """Start a process that reads batches of a store; what it finds and whether it loaded numba is printed."""
    import scipy.sparse

    import sparsestore as ss

    x = scipy.sparse.random_array((300, 20), density=0.1, format="csr", rng=np.random.default_rng(0))
    ss.convert(x, tmp_path / "s.zarr")

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROBE, str(tmp_path / "s.zarr"), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    return start


def printed(process: subprocess.Popen[str]) -> list[str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.split()


def test_batches_are_read_without_numba_once_kernels_are_compiled(start: Any) -> None:
    cold, warm = printed(start()), printed(start())
    assert (cold[1], warm[1]) == ("True", "False")
    assert cold[0] == warm[0]


@pytest.mark.slow
def test_processes_that_compile_at_once_leave_whole_files(start: Any, cache: Path) -> None:
    assert len({printed(process)[0] for process in [start() for _ in range(3)]}) == 1
    assert {path.suffix for path in cache.iterdir() if path.is_file()} == {".code"}
    assert printed(start())[1] == "False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_forked_process_loads_kernels_of_its_own(start: Any) -> None:
    printed(start("fork"))
    assert printed(start("fork"))[1] == "False"


def test_threads_may_call_a_new_kernel_at_once(cache: Path) -> None:
    kernel, found = first_descent(), []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        found.append(kernel(INDPTR, DESCENT))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4
    assert len(objects(cache)) == 1


def test_threads_may_call_a_kernel_with_arrays_of_their_own(cache: Path) -> None:
    kernel, n = Kernel(gather.fill.function), 400
    kernel(0.0, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    outs = [np.zeros(500) for _ in range(4)]

    def work(number: int) -> None:
        for i in range(n):
            kernel(float(number * n + i), np.array([1]), np.array([i]), outs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, out in enumerate(outs):
        assert out[:n].tolist() == [number * n + i for i in range(n)]
        assert not out[n:].any()


# ---- whoever waits is told

LINE = "compiling loops for this machine (once per installation) ..."
WAITING = """
import sys
import numpy as np
from sparsestore import cli
from sparsestore.kernels import compiler, gather, native
native._notice = compiler.Notice(patience_s=float(sys.argv.pop(1)))
if sys.argv[1:]:
    cli.main()
gather.first_descent(np.array([0, 2]), np.array([1, 0], np.uint32))
gather.first_descent(np.array([0, 2]), np.array([1, 0], np.uint16))
"""


def said(patience_s: float, *arguments: str, terminal: bool = False) -> list[str]:
    """Lines on standard error of a process that compiles two kernels, or runs a command."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", WAITING, str(patience_s), *arguments]
    if not terminal:
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        return run.stderr.splitlines()
    ours, its = os.openpty()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its, cwd=ROOT) as process:
        os.close(its)
        found = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(ours, 65536):
                found += piece
    os.close(ours)
    assert process.returncode == 0, found
    return found.decode().splitlines()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_who_waits_at_a_terminal_is_told_once(cache: Path) -> None:
    assert said(0, terminal=True) == [f"sparsestore: {LINE}"]
    assert said(0, terminal=True) == []  # nothing to compile any more


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_who_does_not_wait_is_not_told(cache: Path) -> None:
    assert said(1e6, terminal=True) == []


def test_away_from_a_terminal_it_is_a_line_of_the_log(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert said(0) == []
    notice = compiler.Notice(patience_s=0)
    with caplog.at_level("INFO", logger="sparsestore"), notice.waiting():
        while not notice._given:
            time.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == [LINE]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.slow
def test_the_command_line_says_it_once(tmp_path: Path, cache: Path, terminal: bool) -> None:
    import scipy.sparse

    import sparsestore as ss

    x = scipy.sparse.random_array((300, 20), density=0.1, format="csr", rng=np.random.default_rng(0))
    ss.convert(x, tmp_path / "s.zarr")
    for file in objects(cache):
        file.unlink()
    lines = said(0, "verify", str(tmp_path / "s.zarr"), "--deep", terminal=terminal)
    assert objects(cache)
    told = [line for line in lines if LINE in line]  # a bar comes after it on a terminal
    assert told == lines[:1] == [f"sparsestore: {LINE}" if terminal else f"info: {LINE}"]
