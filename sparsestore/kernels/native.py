"""A kernel compiled once an installation, and loaded without numba.

numba costs half a second before its first call, cached machine code or not: more than reading a million rows does. So
numba compiles here and does no more: the machine code of the bare loop is kept as an object file, which LLVM's own
loader (llvmlite) takes in some hundredths of a second and ctypes calls, with the GIL released.

Whatever is not as expected goes to numba's own dispatcher, which gives the same result later: other platforms, arrays
that are no plain memory, code that would need anything of numba or Python while it runs, folders that can not be
written.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Kernel", "UnsuitableError", "folders", "isolate"]

log = logging.getLogger("sparsestore")

Kinds = tuple[Any, ...]
"""What machine code is compiled for: of each argument its dtype and number of dimensions, or `int` or `float`."""

PLATFORMS = ("linux",)  # on others numba does it all: nobody has tried there what is done here
_SCALARS = {int: ctypes.c_int64, float: ctypes.c_double}
# numba's way to pass an array: two owners, elements, bytes an element, address; then its shape and its strides
_HEAD = ("ptr", "ptr", "i64", "i64", "ptr")
# Operations of LLVM that become instructions, or calls of the C library that every process has. Any other function
# that the code refers to may be missing when it is loaded, upon which LLVM ends the process.
_INTRINSICS = {"assume", "experimental", "lifetime", "masked", "memcpy", "memmove", "memset", "prefetch", "vector"}
_INTRINSICS |= {"smax", "smin", "uadd", "umax", "umin", "usub"}
_INSTRUCTIONS = ("llvm.x86.sse42.", "llvm.x86.pclmulqdq")  # of this machine, which a kernel asks for by name
# a process that forks does so while no other thread is inside LLVM, whose own lock the child would find taken for ever
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class UnsuitableError(Exception):
    """The kernel has to be called by way of numba; the message says why."""


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
        self._written = tuple(name.startswith("out") for name in code.co_varnames[: code.co_argcount])
        self._gives_number = function.__annotations__["return"] in ("int", int)
        self._loaded: dict[Kinds, Callable[..., int] | None] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop; with whatever numba accepts, and with numba's errors."""
        kinds: list[Any] = []
        values: list[Any] = []
        if len(arguments) != len(self._written):
            return self.compiled(*arguments)
        for argument, written in zip(arguments, self._written, strict=True):
            if type(argument) is np.ndarray:
                flags = argument.flags
                if not (flags.c_contiguous and flags.aligned and (flags.writeable or not written)):
                    return self.compiled(*arguments)
                kinds += (argument.dtype, argument.ndim)
                values += (None, None, argument.size, argument.itemsize, argument.__array_interface__["data"][0])
                values += argument.shape
                values += argument.strides
            elif type(argument) is float or (type(argument) is int and -(2**63) <= argument < 2**63):
                kinds.append(type(argument))
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
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        if native(ctypes.byref(result), ctypes.byref(error), *values):
            raise RuntimeError(f"{self.function.__qualname__} raises an exception, which a kernel must not do")
        return result.value if self._gives_number else None

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

    def _load(self, kinds: Kinds) -> Callable[..., int] | None:
        """Machine code for these arguments, from the cache or compiled; None where numba has to be called."""
        with _lock:
            if kinds not in self._loaded:
                try:
                    self._loaded[kinds] = self._native(kinds)
                except Exception as reason:  # anything at all: numba then does, or says, what is to be done
                    log.debug("%s%s is left to numba: %s", self.function.__qualname__, kinds, reason, exc_info=True)
                    self._loaded[kinds] = None
            return self._loaded[kinds]

    def _native(self, kinds: Kinds) -> Callable[..., int]:
        if sys.platform not in PLATFORMS or sys.maxsize < 2**63 - 1 or sys.byteorder != "little":
            raise UnsuitableError(f"never tried on {sys.platform}")
        harmless = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
        if any(name.startswith("NUMBA_") and name not in harmless for name in os.environ):
            raise UnsuitableError("the environment has wishes about compiled code")
        for kind in kinds:
            if isinstance(kind, np.dtype) and not (kind.isnative and kind.kind in "biuf" and kind.str[1:] != "f2"):
                raise UnsuitableError(f"arrays of {kind}")
        key = self.key(kinds)
        name = f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}-{key[:24]}.o"
        code = _read(name, key)
        if code is None:
            began = time.perf_counter()
            code = self._compile(kinds, f"sparsestore_{key}")
            path = _write(name, key, code)
            took = time.perf_counter() - began
            log.info("compiled %s in %.2f s, kept in %s", self.function.__qualname__, took, path or "no file")
        return _link(code, f"sparsestore_{key}", kinds)

    def key(self, kinds: Kinds) -> str:
        """Hexadecimal digest of all that machine code depends on: sources, compilers, this machine, the arguments."""
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        files = [__file__, self.function.__code__.co_filename]
        if self._needs is not None:
            files.append(self._needs.__code__.co_filename)
        sources = [Path(file).read_bytes() for file in files]
        asked = [kind.str if isinstance(kind, np.dtype) else str(kind) for kind in kinds]
        return hashlib.sha256(
            repr((sources, *_compilers(), self.function.__qualname__, asked)).encode()
        ).hexdigest()

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
        dispatcher = njit(tuple(signature), nogil=True, error_model="numpy")(self._complete())
        (typed,) = dispatcher.nopython_signatures
        if typed.return_type != (nb.int64 if self._gives_number else nb.none):
            raise UnsuitableError(f"it returns {typed.return_type}")
        return isolate(dispatcher.inspect_llvm(dispatcher.signatures[0]), symbol, ["ptr", "ptr", *_flat(kinds)])


@functools.cache
def _compilers() -> tuple[Any, ...]:
    """Versions of what makes machine code, and the machine that it is for."""
    import llvmlite.binding as llvm

    versions = [importlib.metadata.version(package) for package in ("numba", "llvmlite", "numpy")]
    return versions, (llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


def _flat(kinds: Kinds) -> list[str]:
    """LLVM's types of a call's arguments."""
    flat: list[str] = []
    for kind in kinds:
        if isinstance(kind, np.dtype):
            flat += _HEAD
        elif isinstance(kind, int):
            flat += ["i64"] * (2 * kind)
        else:
            flat.append("i64" if kind is int else "double")
    return flat


def isolate(ir: str, symbol: str, parameters: list[str]) -> bytes:
    """Object file of the one bare function in numba's module, for this machine.

    Parameters
    ----------
    ir : str
        Optimised module: the function, and wrappers of it for callers in Python and in C.
    symbol : str
        New name of the function.
    parameters : list of str
        LLVM's types that it must take.

    Raises
    ------
    UnsuitableError
        Where there is not just one such function, its parameters are others, or it needs anything outside of itself.
    """
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(ir)
    defined = [function for function in module.functions if not function.is_declaration]
    bare = [f for f in defined if not f.name.startswith(("_ZN7cpython", "cfunc.", "NRT_"))]
    if len(bare) != 1:
        raise UnsuitableError(f"{len(bare)} functions where one was expected: {[f.name for f in bare]}")
    found = [
        "ptr" if str(argument.type).endswith(("*", "ptr")) else str(argument.type) for argument in bare[0].arguments
    ]
    if found != parameters:
        raise UnsuitableError(f"parameters {found}, expected {parameters}")
    for value in (*defined, *module.global_variables):
        if not value.is_declaration:
            value.linkage = "internal"  # what nobody calls then goes, and with it all that it alone refers to
    bare[0].linkage, bare[0].name = "external", symbol
    target = llvm.Target.from_triple(llvm.get_process_triple())
    x86 = target.name.startswith("x86")
    machine = target.create_target_machine(  # as numba's
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if x86 else "default",
        codemodel="jitdefault",
        jit=True,
    )
    if hasattr(llvm, "create_module_pass_manager"):  # llvmlite 0.44
        passes = llvm.create_module_pass_manager()
        passes.add_global_dce_pass()
        passes.run(module)
    else:
        passes = llvm.create_new_module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    outside = [v.name for v in (*module.functions, *module.global_variables) if v.is_declaration]
    unknown = [
        n
        for n in outside
        if not (n.startswith("llvm.") and (n.startswith(_INSTRUCTIONS) or n.split(".")[1] in _INTRINSICS))
    ]
    if unknown:
        raise UnsuitableError(f"it needs {', '.join(unknown)}")
    code: bytes = machine.emit_object(module)
    return code


def _is_instruction(name: str) -> bool:
    return name.startswith(_INSTRUCTIONS) or (name.startswith("llvm.") and name.split(".")[1] in _INTRINSICS)


# machine code stays where it is as long as the process lives
_engines: list[Any] = []


def _link(code: bytes, symbol: str, kinds: Kinds) -> Callable[..., int]:
    """Load an object file; its function, to be called with two pointers (result, error) and the flattened arguments."""
    import llvmlite.binding as llvm

    # an engine each: one that has handed out addresses should not be given more code
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    if not address:
        raise UnsuitableError(f"the object file has no {symbol}")
    _engines.append(engine)
    c = {"ptr": ctypes.c_void_p, "i64": ctypes.c_int64, "double": ctypes.c_double}
    pointers = (ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.CFUNCTYPE(ctypes.c_int32, *pointers, *(c[kind] for kind in _flat(kinds)))(address)


# ---- files of the cache: a digest, then an object file


def folders() -> list[Path]:
    """Folders for object files, the best first: $NUMBA_CACHE_DIR; else beside the modules, or a folder of the user."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return [Path(os.environ["NUMBA_CACHE_DIR"])]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return [Path(__file__).parent / "__pycache__", home.expanduser() / "sparsestore"]


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _read(name: str, key: str) -> bytes | None:
    """Object file from the cache; None where there is none, or one that is damaged or was made for something else."""
    for folder in folders():
        try:
            payload = (folder / name).read_bytes()
        except OSError:
            continue
        if payload[:32] == _digest(key, payload[32:]):
            return payload[32:]
    return None


def _write(name: str, key: str, code: bytes) -> Path | None:
    """Keep an object file, whole or not at all; None where no folder can be written."""
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
