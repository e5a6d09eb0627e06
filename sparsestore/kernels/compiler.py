"""What numba is used for: to turn a plain loop into an object file that needs neither numba nor Python.

numba passes an array as a handful of arguments, and ctypes takes a tenth of a microsecond for each. So the bare loop
gets an entry of our own, which takes one address: that of the packed arguments, each a number or the address of an
array object. Where the elements are and how many the entry reads from numpy's own structure, as extension modules do;
`check_arrays` compares it with what Python says before anybody relies on it. To ask in Python for the address of one
array's elements costs as much as a whole call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

import numpy as np

from sparsestore.kernels.image import UnsuitableError

__all__ = ["Kinds", "Notice", "check_arrays", "inlined", "isolate", "object_file", "packing"]

log = logging.getLogger("sparsestore")

_COUNTING = re.compile(r"^ *(tail )?call void @NRT_(incref|decref)\(.*\).*$", re.MULTILINE)

Kinds = tuple[Any, ...]
"""What code is compiled for: for each argument its dtype and number of dimensions, or `int` or `float` and 0."""

# where an array object has the address of its elements, its lengths and its strides: PyArrayObject_fields
_DATA, _SHAPE, _STRIDES = 16, 32, 40


def object_file(function: Callable[..., Any], kinds: Kinds, gives_number: bool, symbol: str) -> bytes:
    """Object file of a loop for these arguments, for this machine.

    Parameters
    ----------
    function : callable
        The loop, in what numba can compile.
    kinds : tuple
        What its arguments are.
    gives_number : bool
        Whether it returns an ``int``, and not ``None``.
    symbol : str
        Name of the entry, which takes the address of the packed arguments and gives that number, or 0.

    Raises
    ------
    UnsuitableError
        Where the loop is nothing that an entry could call.
    """
    from numba import from_dtype, njit, types

    numbers = {int: types.int64, float: types.float64}
    signature = tuple(
        numbers[kind] if kind in numbers else types.Array(from_dtype(kind), dimensions, "C")
        for kind, dimensions in _pairs(kinds)
    )
    bare = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # which take a third of the time, and nobody calls
    dispatcher = njit(signature, nogil=True, error_model="numpy", **bare)(function)
    (typed,) = dispatcher.nopython_signatures
    if typed.return_type != (types.int64 if gives_number else types.none):
        raise UnsuitableError(f"it returns {typed.return_type}")
    return isolate(dispatcher.inspect_llvm(dispatcher.signatures[0]), symbol, kinds)


def inlined(functions: Iterable[Callable[..., Any]], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Plain functions, by their names, as what becomes part of any loop that calls them: for ``Kernel(needs=...)``.

    Parameters
    ----------
    functions : iterable of callable
        Each may call those before it.
    names : dict, optional
        What else they use, beside the globals of their modules; given back with them.
    """
    from numba import njit

    names = dict(names or {})
    for function in functions:
        plain: Any = function
        complete = FunctionType(plain.__code__, {**plain.__globals__, **names}, plain.__name__)
        names[plain.__name__] = njit(forceinline=True, error_model="numpy")(complete)
    return names


def _pairs(kinds: Kinds) -> list[tuple[Any, int]]:
    """The kinds, one by one."""
    return list(zip(kinds[::2], kinds[1::2], strict=True))


def packing(kinds: Kinds) -> struct.Struct:
    """How arguments are packed: numbers as they are, of arrays the address of the object."""
    return struct.Struct("=" + "".join({int: "q", float: "d"}.get(kind, "Q") for kind, _ in _pairs(kinds)))


@functools.cache
def check_arrays() -> None:
    """Refuse Pythons and numpys that lay out an array object in another way than the code expects."""
    if sys.implementation.name != "cpython" or object.__basicsize__ != _DATA:  # elsewhere id() may be no address
        raise UnsuitableError("objects are laid out in another way")
    array = np.zeros((2, 3), np.int16)
    words = (ctypes.c_uint64 * 6).from_address(id(array))
    found = {at: words[at // 8] for at in (_DATA, _SHAPE, _STRIDES)}
    pairs = ctypes.c_int64 * array.ndim
    if (
        found[_DATA] != array.__array_interface__["data"][0]
        or abs(found[_STRIDES] - found[_SHAPE]) != ctypes.sizeof(pairs)  # numpy has one piece of memory for both
        or tuple(pairs.from_address(found[_SHAPE])) != array.shape
        or tuple(pairs.from_address(found[_STRIDES])) != array.strides
    ):
        raise UnsuitableError("arrays are laid out in another way")


def isolate(ir: str, symbol: str, kinds: Kinds) -> bytes:
    """Object file of the one bare function in numba's module, for this machine, with an entry of our own.

    Parameters
    ----------
    ir : str
        Optimised module with the function.
    symbol : str
        Name of the entry.
    kinds : tuple
        What the arguments are.

    Raises
    ------
    UnsuitableError
        Where there is not just one function, its parameters are others, or it can raise exceptions.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # arrays have no owner here (see `_entry`), and to count references to none does nothing; what makes an array, and
    # with it an owner, calls functions that are found to be missing
    ir = _COUNTING.sub("", ir)
    defined = [function for function in llvm.parse_assembly(ir).functions if not function.is_declaration]
    counting = [
        f.name for f in defined if f.name.startswith("NRT_")
    ]  # of references: numba leaves them in some modules
    bare = [function for function in defined if function.name not in counting]
    if len(bare) != 1:
        raise UnsuitableError(f"{len(bare)} functions where one was expected: {[f.name for f in bare]}")
    for block in bare[0].blocks:
        *_, last = block.instructions
        if last.opcode == "ret" and str(last).split() != ["ret", "i32", "0"]:
            raise UnsuitableError("it can raise exceptions")
    types = [str(argument.type) for argument in bare[0].arguments]
    module = llvm.parse_assembly(ir + _entry(symbol, bare[0].name, types, kinds))
    for name in counting:
        module.get_function(name).linkage = "available_externally"  # not emitted: a call would be found to be missing
    module.get_function(bare[0].name).linkage = "internal"  # to be called by its distance
    # numba has optimised the function: to do it again, together with the entry, takes 10 ms and gains nothing
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    code: bytes = machine.emit_object(module)
    return code


def _entry(symbol: str, name: str, types: list[str], kinds: Kinds) -> str:
    """Function in LLVM's language that takes the arguments apart, as numba passes them, and calls the bare function.

    Parameters
    ----------
    symbol, name : str
        Its own name, and that of the bare function.
    types : list of str
        LLVM's types of the bare function's parameters, which differ with its version where they are pointers.
    kinds : tuple
        What the arguments are.
    """
    lines: list[str] = []

    def new(operation: str) -> str:
        lines.append(f"%v{len(lines)} = {operation}")
        return f"%v{len(lines) - 1}"

    def word(address: str, offset: int) -> str:
        address = new(f"add i64 {address}, {offset}")
        pointer = new(f"inttoptr i64 {address} to i64*")
        return new(f"load i64, i64* {pointer}")

    result, error = new("alloca i64"), new("alloca i64")
    lines.append(f"store i64 0, i64* {result}")
    flat = [("ptr", result), ("ptr", error)]
    for position, (kind, dimensions) in enumerate(_pairs(kinds)):
        given = word("%given", 8 * position)
        if kind is int:
            flat.append(("i64", given))
        elif kind is float:
            flat.append(("double", new(f"bitcast i64 {given} to double")))
        else:  # two owners, elements, bytes an element, address; then shape and strides
            lengths, steps = word(given, _SHAPE), word(given, _STRIDES)
            shape = [word(lengths, 8 * i) for i in range(dimensions)]
            strides = [word(steps, 8 * i) for i in range(dimensions)]
            size = functools.reduce(lambda size, length: new(f"mul i64 {size}, {length}"), shape, "1")
            flat += [("ptr", "null"), ("ptr", "null"), ("i64", size), ("i64", str(kind.itemsize))]
            flat += [("ptr", word(given, _DATA)), *(("i64", value) for value in (*shape, *strides))]
    expected = [kind for kind, _ in flat]
    found = ["ptr" if kind.endswith(("*", "ptr")) else kind for kind in types]
    if found != expected:
        raise UnsuitableError(f"parameters {found}, expected {expected}")
    passed = []
    for (_, value), kind in zip(flat, types, strict=True):
        if value in (result, error):
            value = new(f"bitcast i64* {value} to {kind}")
        elif kind.endswith(("*", "ptr")) and value != "null":
            value = new(f"inttoptr i64 {value} to {kind}")
        passed.append(f"{kind} {value}")
    body = "\n".join(lines)
    return f"""
        define i64 @{symbol}(i64 %given) nounwind {{
            {body}
            call i32 @"{name}"({", ".join(passed)})
            %result = load i64, i64* {result}
            ret i64 %result
        }}
    """


class Notice:
    """A line once a process where compiling takes longer than a second in all, while one waits for it."""

    def __init__(self, patience_s: float = 1.0) -> None:
        self._left_s = patience_s
        self._given = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time that passes; by one thread at once."""
        if self._given:
            yield
            return
        began = time.perf_counter()
        timer = threading.Timer(max(self._left_s, 0), self._give)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self._left_s -= time.perf_counter() - began

    def _give(self) -> None:
        self._given = True
        line = "compiling loops for this machine (once per installation) ..."
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no standard error, or a closed one
            if sys.stderr.isatty():
                sys.stderr.write(f"sparsestore: {line}\n")
                return
        log.info(line)
