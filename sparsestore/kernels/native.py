"""A kernel compiled once an installation, and loaded without numba.

numba costs half a second before its first call, cached machine code or not: more than reading a million rows does. So
numba only compiles (`compiler`): what comes of it is kept as an `image`, which is in memory a fraction of a millisecond
after the first call, and which ctypes calls, with the GIL released.

Whatever is not as expected goes to numba's own dispatcher, which gives the same result later: other platforms, arrays
that are no plain memory, code that would need anything of numba or Python while it runs, folders that can not be
written.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsestore.forking import undivided
from sparsestore.kernels import compiler, image
from sparsestore.kernels.compiler import Kinds
from sparsestore.kernels.image import UnsuitableError

__all__ = ["Kernel", "folders"]

log = logging.getLogger("sparsestore")

Native = tuple[Callable[..., bytes], Callable[[bytes], int]]
"""What makes eight bytes of each argument, and what takes the whole: addresses of array objects, or numbers."""

PLATFORMS = (("linux", "x86_64"),)  # on others numba does it all: nobody has tried there what is done here
_READABLE, _WRITABLE = 0x101, 0x501  # numpy's flags: elements in C order and aligned; and may be written
_notice = compiler.Notice()


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
        self._called: set[tuple[Any, ...]] = set()

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop; with whatever numba accepts, and with numba's errors."""
        if len(arguments) != len(self._flags):
            return self._by_numba(*arguments)
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
                kinds.append(0)
                values.append(argument)
            else:
                return self._by_numba(*arguments)
        key = tuple(kinds)
        try:
            native = self._loaded[key]
        except KeyError:
            native = self._load(key)
        if native is None:
            return self._by_numba(*arguments)
        pack, enter = native
        result = enter(pack(*values))  # `arguments` keeps the arrays alive meanwhile
        return result if self._gives_number else None

    def _by_numba(self, *arguments: Any) -> Any:
        """Call numba's dispatcher; where it compiles, no fork comes between."""
        kinds = tuple(
            (getattr(argument, "dtype", type(argument)), getattr(argument, "ndim", 0)) for argument in arguments
        )
        if kinds in self._called:
            return self.compiled(*arguments)
        with undivided:
            result = self.compiled(*arguments)
        self._called.add(kinds)
        return result

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
        with undivided:  # LLVM has a lock of its own, which a forked child could find taken for ever
            if kinds not in self._loaded:
                try:
                    self._loaded[kinds] = self._native(kinds)
                except MemoryError:  # numba would need far more, and LLVM ends a process that has no memory left
                    raise
                except Exception as reason:  # anything at all: numba then does, or says, what is to be done
                    log.debug("%s%s is left to numba: %s", self.function.__qualname__, kinds, reason, exc_info=True)
                    self._loaded[kinds] = None
            return self._loaded[kinds]

    def _native(self, kinds: Kinds) -> Native:
        _check_process()
        compiler.check_arrays()
        for kind in kinds:
            if isinstance(kind, np.dtype) and not (kind.isnative and kind.kind in "biuf" and kind.str[1:] != "f2"):
                raise UnsuitableError(f"arrays of {kind}")
        key = self.key(kinds)
        name = f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}-{key[:24]}.code"
        code = _read(name, key)
        if code is None:
            began = time.perf_counter()
            with _notice.waiting():
                code = image.build(compiler.object_file(self._complete(), kinds, self._gives_number, "entry"), "entry")
            path = _write(name, key, code)
            took = time.perf_counter() - began
            log.debug("compiled %s in %.2f s, kept in %s", self.function.__qualname__, took, path or "no file")
        enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p)(image.load(code))
        return compiler.packing(kinds).pack, enter

    def key(self, kinds: Kinds) -> str:
        """Hexadecimal digest of all that machine code depends on: sources, processor, arguments.

        Not the versions of compilers, which cost more to find out than all the rest: another one's code is as good.
        """
        files = [__file__, compiler.__file__, image.__file__, self.function.__code__.co_filename]
        if self._needs is not None:
            code, names = self._needs.__code__, self._needs.__globals__
            used = [names[name] for name in code.co_names if isinstance(names.get(name), types.FunctionType)]
            files += [code.co_filename, *(function.__code__.co_filename for function in used)]
        asked = [kind.str if isinstance(kind, np.dtype) else str(kind) for kind in kinds]
        depends = (*map(_source, files), _processor(), self.function.__qualname__, asked)
        return hashlib.sha256(repr(depends).encode()).hexdigest()


# ---- what machine code depends on


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
