"""A kernel compiled once an installation, and loaded without numba.

numba costs half a second before its first call, cached machine code or not: more than reading a million rows does. So
numba compiles here and does no more: the machine code of the bare loop is kept as an `image`, which is in memory a
fraction of a millisecond after the first call, and which ctypes calls, with the GIL released.

What the machine code gets is the addresses of the array objects themselves: it takes address and shape of their
elements from numpy's own structure, which extension modules do as well, and which is checked before it is relied upon.
To ask in Python for the address of one array's elements costs as much as a whole call.

Whatever is not as expected goes to numba's own dispatcher, which gives the same result later: other platforms, arrays
that are no plain memory, code that would need anything of numba or Python while it runs, folders that can not be
written.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparsestore.kernels import image
from sparsestore.kernels.image import UnsuitableError

__all__ = ["Kernel", "folders", "isolate"]

log = logging.getLogger("sparsestore")

Kinds = tuple[Any, ...]
"""What machine code is compiled for: of each argument its dtype and number of dimensions, or `int` or `float`."""
Native = tuple[Callable[..., bytes], Callable[[bytes], int]]
"""What makes eight bytes of each argument, and what takes the whole: addresses of array objects, or numbers."""

PLATFORMS = (("linux", "x86_64"),)  # on others numba does it all: nobody has tried there what is done here
_SCALARS = {int: "q", float: "d"}
_DATA, _SHAPE, _STRIDES = 16, 32, 40  # where an array object has address, lengths and steps: PyArrayObject_fields
_READABLE, _WRITABLE = 0x101, 0x501  # numpy's flags: elements in C order and aligned; and may be written
# a process that forks does so while no other thread is inside LLVM, whose own lock the child would find taken for ever
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Kernel:
    """A plain function over arrays and numbers, compiled for the dtypes that it is called with.

    Made to decorate functions of positional arguments that raise nothing and are annotated to return ``None`` or
    ``int``. Parameters whose names start with ``out`` are written to, the others only read. May be called from several
    threads at once.

    Parameters
    ----------
    function : callable
        The loop, in what numba can compile.
    needs : callable, optional
        Gives global names that the function uses and that can be made only with numba at hand, such as intrinsics:
        ``@Kernel(needs=intrinsics)``. Called, by any thread, right before the function is compiled. What it raises
        where this machine lacks an instruction reaches the caller of the kernel: LLVM would end the process.
    """

    def __new__(cls, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Make a kernel, or a decorator that makes one with these options."""
        return functools.partial(cls, **options) if function is None else super().__new__(cls)

    def __init__(self, function: Callable[..., Any], *, needs: Callable[[], dict[str, Any]] | None = None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._needs = needs
        code = function.__code__
        parameters = code.co_varnames[: code.co_argcount]
        self._flags = tuple(_WRITABLE if name.startswith("out") else _READABLE for name in parameters)
        self._gives_number = function.__annotations__["return"] in ("int", int)
        self._loaded: dict[Kinds, Native | None] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop; with whatever numba accepts, and with numba's errors."""
        if len(arguments) != len(self._flags):
            return self.compiled(*arguments)
        kinds: list[Any] = []
        values: list[int | float] = []
        for argument, flags in zip(arguments, self._flags):  # noqa: B905 - just found equally long, and time counts
            kind = type(argument)
            if kind is np.ndarray and argument.flags.num & flags == flags:
                kinds.append(argument.dtype)
                kinds.append(argument.ndim)
                values.append(id(argument))
            elif kind is float or (kind is int and -(2**63) <= argument < 2**63):
                kinds.append(kind)
                values.append(argument)
            else:
                return self.compiled(*arguments)
        key = tuple(kinds)
        try:
            native = self._loaded[key]
        except KeyError:
            native = self._load(key)
        if native is None:
            return self.compiled(*arguments)
        pack, enter = native
        result = enter(pack(*values))  # `arguments` keeps the arrays alive meanwhile
        return result if self._gives_number else None

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        """The same function by way of numba."""
        from numba import njit

        compiled: Callable[..., Any] = njit(nogil=True, cache=True)(self._complete())
        return compiled

    def _complete(self) -> Callable[..., Any]:
        """The function, with all the names that it uses."""
        if self._needs is None:
            return self.function
        plain = self.function
        names = {**plain.__globals__, **self._needs()}
        complete = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
        return functools.update_wrapper(complete, plain)

    def _load(self, kinds: Kinds) -> Native | None:
        """Machine code for these arguments, from the cache or compiled; None where numba has to be called."""
        with _lock:
            if kinds not in self._loaded:
                try:
                    self._loaded[kinds] = self._native(kinds)
                except Exception as reason:  # anything at all: numba then does, or says, what is to be done
                    log.debug("%s%s is left to numba: %s", self.function.__qualname__, kinds, reason, exc_info=True)
                    self._loaded[kinds] = None
            return self._loaded[kinds]

    def _native(self, kinds: Kinds) -> Native:
        _check_process()
        _check_arrays()
        for kind in kinds:
            if isinstance(kind, np.dtype) and not (kind.isnative and kind.kind in "biuf" and kind.str[1:] != "f2"):
                raise UnsuitableError(f"arrays of {kind}")
        key = self.key(kinds)
        name = f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}-{key[:24]}.code"
        code = _read(name, key)
        if code is None:
            began = time.perf_counter()
            with _notice.waiting():
                code = image.build(self._compile(kinds, f"sparsestore_{key}"), f"sparsestore_{key}")
            path = _write(name, key, code)
            took = time.perf_counter() - began
            log.debug("compiled %s in %.2f s, kept in %s", self.function.__qualname__, took, path or "no file")
        enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p)(image.load(code))
        return struct.Struct("=" + "".join(_SCALARS.get(kind, "Q") for kind in _arguments(kinds))).pack, enter

    def key(self, kinds: Kinds) -> str:
        """Hexadecimal digest of all that machine code depends on: sources, processor, arguments.

        Not the versions of compilers, which cost more to find out than all the rest: another one's code is as good.
        """
        files = [__file__, image.__file__, self.function.__code__.co_filename]
        if self._needs is not None:
            files.append(self._needs.__code__.co_filename)
        asked = [kind.str if isinstance(kind, np.dtype) else str(kind) for kind in kinds]
        depends = (*map(_source, files), _processor(), self.function.__qualname__, asked)
        return hashlib.sha256(repr(depends).encode()).hexdigest()

    def _compile(self, kinds: Kinds, symbol: str) -> bytes:
        """Object file with the loop for these arguments as its one function, of the given name."""
        from numba import from_dtype, njit
        from numba import types as nb

        signature = []
        for kind, dimensions in zip(kinds, (*kinds[1:], None), strict=True):
            if isinstance(kind, np.dtype):
                signature.append(nb.Array(from_dtype(kind), dimensions, "C"))
            elif kind in _SCALARS:
                signature.append(nb.int64 if kind is int else nb.float64)
        bare = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # a third of the time that it takes
        dispatcher = njit(tuple(signature), nogil=True, error_model="numpy", **bare)(self._complete())
        (typed,) = dispatcher.nopython_signatures
        if typed.return_type != (nb.int64 if self._gives_number else nb.none):
            raise UnsuitableError(f"it returns {typed.return_type}")
        return isolate(dispatcher.inspect_llvm(dispatcher.signatures[0]), symbol, kinds)


def _arguments(kinds: Kinds) -> list[Any]:
    """The kinds without numbers of dimensions: one for each argument."""
    return [kind for kind in kinds if not isinstance(kind, int)]


# ---- what it takes, and what it depends on


@functools.cache
def _source(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@functools.cache
def _processor() -> bytes:
    """Maker, model and abilities of the processor."""
    try:
        # not /proc/cpuinfo: to open it makes some versions of Linux ask every processor for its present frequency
        return Path("/sys/devices/system/cpu/modalias").read_bytes()
    except OSError:
        with Path("/proc/cpuinfo").open("rb") as file:  # of the first processor: up to an empty line
            lines = list(iter(file.readline, b"\n"))
        return b"".join(line for line in lines if line.startswith((b"vendor", b"cpu family", b"model", b"flags")))


def _check_process() -> None:
    """Refuse other platforms, and wishes about compiled code."""
    if (sys.platform, platform.machine()) not in PLATFORMS or sys.maxsize < 2**63 - 1:
        raise UnsuitableError(f"never tried on {sys.platform} {platform.machine()}")
    harmless = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
    if any(name.startswith("NUMBA_") and name not in harmless for name in os.environ):
        raise UnsuitableError("the environment has wishes about compiled code")


@functools.cache
def _check_arrays() -> None:
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


def folders() -> list[Path]:
    """Folders for images, the best first: $NUMBA_CACHE_DIR; else beside the modules, or a folder of the user."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return [Path(os.environ["NUMBA_CACHE_DIR"])]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return [Path(__file__).parent / "__pycache__", home.expanduser() / "sparsestore"]


# ---- files of the cache: a digest, then an image


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _read(name: str, key: str) -> bytes | None:
    """Image from the cache; None where there is none, or one that is damaged or was made for something else."""
    for folder in folders():
        try:
            payload = (folder / name).read_bytes()
        except OSError:
            continue
        if payload[:32] == _digest(key, payload[32:]):
            return payload[32:]
    return None


def _write(name: str, key: str, code: bytes) -> Path | None:
    """Keep an image, whole or not at all; None where no folder can be written."""
    for folder in folders():
        temporary = folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(_digest(key, code) + code)
            temporary.replace(folder / name)
        except OSError:
            continue
        return folder / name
    return None


# ---- what a compiler is given


def isolate(ir: str, symbol: str, kinds: Kinds) -> bytes:
    """Object file of the one bare function in numba's module, for this machine, with an entry of our own.

    Parameters
    ----------
    ir : str
        Optimised module with the function.
    symbol : str
        Name of the entry, which takes the address of the packed arguments and gives the function's number.
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
    bare = [function for function in llvm.parse_assembly(ir).functions if not function.is_declaration]
    if len(bare) != 1:
        raise UnsuitableError(f"{len(bare)} functions where one was expected: {[f.name for f in bare]}")
    for block in bare[0].blocks:
        *_, last = block.instructions
        if last.opcode == "ret" and str(last).split() != ["ret", "i32", "0"]:
            raise UnsuitableError("it can raise exceptions")
    types = [str(argument.type) for argument in bare[0].arguments]
    module = llvm.parse_assembly(ir + _entry(symbol, bare[0].name, types, kinds))
    module.get_function(bare[0].name).linkage = "internal"  # to be called by its distance
    # numba has optimised the function: done once more, together with the entry, some loops came out half as fast
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
    position = 0
    for kind, dimensions in zip(kinds, (*kinds[1:], None), strict=True):
        if isinstance(kind, int):
            continue
        given = word("%given", 8 * position)
        position += 1
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


# ---- whoever waits is told


class _Notice:
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
        line = "compiling the read path for this machine (once per installation) ..."
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no standard error, or a closed one
            if sys.stderr.isatty():
                sys.stderr.write(f"sparsestore: {line}\n")
                return
        log.info(line)


_notice = _Notice()
