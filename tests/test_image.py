"""Object files become code in memory that runs, and nothing else does."""

from __future__ import annotations

import ctypes
import functools
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsestore.kernels import image
from sparsestore.kernels.image import UnsuitableError

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="images are made and tried on x86-64 Linux only"
)

ALONE = """
define i64 @f(i64 %x) {
  %y = add i64 %x, 1
  ret i64 %y
}
"""
CONSTANTS = """
@table = internal constant [4 x i64] [i64 5, i64 6, i64 7, i64 800], align 64
define i64 @f(i64 %x) {
  %at = getelementptr [4 x i64], [4 x i64]* @table, i64 0, i64 %x
  %found = load i64, i64* %at
  %float = sitofp i64 %found to double
  %half = fmul double %float, 0.3125
  %y = fptosi double %half to i64
  ret i64 %y
}
"""
HELPER = """
define internal i64 @g(i64 %x) noinline {
  %y = mul i64 %x, %x
  ret i64 %y
}
define i64 @f(i64 %x) {
  %y = call i64 @g(i64 %x)
  %z = add i64 %y, 1
  ret i64 %z
}
"""
COPIES = """
declare i8* @memcpy(i8*, i8*, i64)
declare i8* @memmove(i8*, i8*, i64)
declare i8* @memset(i8*, i32, i64)
define i64 @f(i64 %x) {
  %1 = inttoptr i64 %x to i8*
  %2 = getelementptr i8, i8* %1, i64 4
  %3 = getelementptr i8, i8* %1, i64 8
  call i8* @memcpy(i8* %2, i8* %1, i64 4)
  call i8* @memmove(i8* %3, i8* %2, i64 4)
  call i8* @memset(i8* %1, i32 45, i64 4)
  ret i64 0
}
"""
JUMPS = """
define i64 @f(i64 %x, i64* %p) {
  switch i64 %x, label %other [i64 0, label %a  i64 1, label %b  i64 2, label %c  i64 3, label %d]
a:
  store i64 1, i64* %p
  ret i64 10
b:
  %b1 = load i64, i64* %p
  ret i64 %b1
c:
  %c1 = mul i64 %x, 77
  ret i64 %c1
d:
  store i64 4, i64* %p
  ret i64 13
other:
  ret i64 -1
}
"""


def object_file(ir: str, reloc: str = "pic", model: str = "small") -> bytes:
    """What LLVM makes of functions in its language."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    code: bytes = target.create_target_machine(reloc=reloc, codemodel=model).emit_object(llvm.parse_assembly(ir))
    return code


def loaded(ir: str) -> Callable[..., int]:
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(
        image.load(image.build(object_file(ir), "f"))
    )


@pytest.mark.parametrize(
    ("ir", "x", "y"), [(ALONE, -5, -4), (CONSTANTS, 3, 250), (HELPER, 9, 82)], ids=["alone", "constants", "helper"]
)
def test_a_function_runs_with_its_constants_and_its_helpers(ir: str, x: int, y: int) -> None:
    assert loaded(ir)(x, None) == y


def test_code_may_jump_by_a_table_and_write_where_it_is_told() -> None:
    f, cell = loaded(JUMPS), ctypes.c_int64(7)
    assert [f(x, ctypes.addressof(cell)) for x in range(5)] == [10, 1, 154, 13, -1]
    assert cell.value == 4


def test_code_may_copy_and_clear_memory_as_c_does() -> None:
    buffer = ctypes.create_string_buffer(b"abcdefghijkl")
    assert loaded(COPIES)(ctypes.addressof(buffer), None) == 0
    assert buffer.value == b"----abcdabcd"


def test_images_do_not_disturb_each_other() -> None:
    plain, table, again = loaded(ALONE), loaded(CONSTANTS), loaded(ALONE)
    assert (plain(1, None), table(3, None), again(1, None)) == (2, 250, 2)


def test_code_in_memory_can_not_be_written() -> None:
    address = image.load(image.build(object_file(ALONE), "f"))
    for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        span, rights = line.split()[:2]
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= address < stop:
            assert rights == "r-xp"
            return
    pytest.fail("the code is nowhere")


FORBIDDEN = """
import ctypes
from sparsestore.kernels import image
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE: no memory becomes executable any more
    raise SystemExit(77)
try:
    image.load(bytes(64))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_process_that_may_not_make_memory_executable_gets_an_error() -> None:
    run = subprocess.run([sys.executable, "-c", FORBIDDEN], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode == 77:
        pytest.skip("needs Linux 6.3")
    assert (run.stdout, run.returncode) == ("PermissionError\n", 0), run.stderr


# ---- what is refused

CALL = ALONE.replace("add i64 %x, 1", "call i64 @absent(i64 %x)") + "declare i64 @absent(i64)"
VARIABLE = ALONE.replace("%y = add i64 %x, 1", "%y = load i64, i64* @v") + "@v = GLOBAL i64 5"


@pytest.mark.parametrize(
    ("ir", "reason"),
    [
        pytest.param(CALL, "it needs absent", id="function"),
        pytest.param(VARIABLE.replace("GLOBAL", "internal global"), "it needs", id="variable"),
        pytest.param(VARIABLE.replace("GLOBAL i64 5", "external global i64"), "relocation", id="import"),
        pytest.param(VARIABLE.replace("GLOBAL", "thread_local global"), "relocation", id="thread-local"),
        pytest.param(ALONE.replace("@f", "@g"), "has no f", id="symbol"),
    ],
)
def test_code_is_refused_that_needs_more_than_itself(ir: str, reason: str) -> None:
    with pytest.raises(UnsuitableError, match=reason):
        image.build(object_file(ir), "f")


def test_code_for_a_fixed_address_is_refused() -> None:
    with pytest.raises(UnsuitableError, match="relocation 1 of"):
        image.build(object_file(CONSTANTS, "static", "large"), "f")


@pytest.mark.parametrize("file", [b"\x7fELF" + bytes(100), Path(sys.executable).read_bytes()], ids=["zeros", "program"])
def test_what_is_no_object_file_is_refused(file: bytes) -> None:
    with pytest.raises(UnsuitableError, match="not an object file of x86-64"):
        image.build(file, "f")


def test_an_object_file_that_is_cut_off_is_refused() -> None:
    for length in range(len(whole())):
        with pytest.raises(UnsuitableError):
            image.build(whole()[:length], "f")


@functools.cache
def whole() -> bytes:
    return object_file(CONSTANTS + HELPER.replace("@f", "@h"))


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_object_file_is_refused_or_made_into_some_image(flips: list[tuple[float, int]]) -> None:
    damaged = bytearray(whole())
    for at, value in flips:
        damaged[int(at * len(damaged))] = value
    try:
        made = image.build(bytes(damaged), "f")
    except UnsuitableError:
        return
    assert len(made) <= 16 * (len(damaged) + 4096)


def test_the_same_code_gives_the_same_image() -> None:
    assert image.build(object_file(JUMPS), "f") == image.build(object_file(JUMPS), "f")
