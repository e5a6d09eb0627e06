"""System calls of a piece of work, seen one by one as the kernel gets them, and made to fail: ptrace(2) and seccomp(2).

Whatever makes a call, Python, numpy or a C library, is seen. Linux on x86-64 alone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["AVAILABLE", "NAMES", "Call", "Fail", "Short", "bytes_at", "descriptor_path", "string_at", "trace"]

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"

_TRACEME, _CONT, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
_OPTIONS = 1 | 8 | 0x80 | 0x100000  # mark stops after calls; follow threads; stop at calls; none outlives its tracer
_AT_CALL = 7
_NO_NEW_PRIVS, _SET_SECCOMP = 38, 22
_TOLD = 1 << 20
_WALL = 0x40000000
_REGISTERS = 27
_RDX, _RAX, _ORIG_RAX = 12, 10, 15
_ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9

NAMES: dict[int, str] = {
    0: "read",
    1: "write",
    2: "open",
    3: "close",
    4: "stat",
    5: "fstat",
    6: "lstat",
    8: "lseek",
    9: "mmap",
    16: "ioctl",
    17: "pread64",
    18: "pwrite64",
    19: "readv",
    20: "writev",
    21: "access",
    28: "madvise",
    32: "dup",
    33: "dup2",
    40: "sendfile",
    72: "fcntl",
    73: "flock",
    74: "fsync",
    75: "fdatasync",
    76: "truncate",
    77: "ftruncate",
    78: "getdents",
    79: "getcwd",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    85: "creat",
    86: "link",
    87: "unlink",
    88: "symlink",
    89: "readlink",
    90: "chmod",
    137: "statfs",
    138: "fstatfs",
    217: "getdents64",
    221: "fadvise64",
    257: "openat",
    258: "mkdirat",
    262: "newfstatat",
    263: "unlinkat",
    264: "renameat",
    265: "linkat",
    266: "symlinkat",
    267: "readlinkat",
    268: "fchmodat",
    269: "faccessat",
    277: "sync_file_range",
    280: "utimensat",
    285: "fallocate",
    292: "dup3",
    295: "preadv",
    296: "pwritev",
    316: "renameat2",
    326: "copy_file_range",
    327: "preadv2",
    328: "pwritev2",
    332: "statx",
    439: "faccessat2",
}
"""Calls that ask something of files, or of the table of open ones."""

_DONE_ALL_THE_SAME = ("close",)  # a descriptor is closed whatever close(2) says


@dataclass(frozen=True)
class Call:
    """A call that a thread makes.

    Attributes
    ----------
    name : str
    arguments : tuple of int
        As they are in the registers: 64 bits without a sign.
    thread : int
    """

    name: str
    arguments: tuple[int, ...]
    thread: int


@dataclass(frozen=True)
class Fail:
    """Its caller gets this errno; the kernel never gets the call, unless it is one of `_DONE_ALL_THE_SAME`."""

    errno: int


@dataclass(frozen=True)
class Short:
    """The third argument, how many bytes to write, becomes this."""

    length: int


def string_at(thread: int, address: int) -> bytes:
    """The bytes up to a zero in the memory of a traced process."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(address)
        found = b""
        while b"\0" not in found:
            found += memory.read(256 - (address + len(found)) % 256)  # up to a page's end, as the next may not be there
        return found.partition(b"\0")[0]


def bytes_at(thread: int, address: int, length: int) -> bytes:
    """So many bytes of the memory of a traced process."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(address)
        pieces = []
        while length:
            pieces.append(memory.read(length))
            length -= len(pieces[-1])
        return b"".join(pieces)


def descriptor_path(thread: int, descriptor: int) -> str:
    """What an open descriptor of a traced process leads to."""
    return str(Path(f"/proc/{thread}/fd/{descriptor}").readlink())


class _Ptrace:
    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._call = libc.ptrace
        self._call.restype = ctypes.c_long
        self._call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._prctl = libc.prctl
        self._prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
        self._registers = (ctypes.c_ulonglong * _REGISTERS)()

    def __call__(self, request: int, thread: int, data: int = 0) -> None:
        if self._call(request, thread, None, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace: {os.strerror(number)}")

    def registers(self, thread: int) -> Any:
        self(_GETREGS, thread, ctypes.addressof(self._registers))
        return self._registers

    def set_registers(self, thread: int) -> None:
        self(_SETREGS, thread, ctypes.addressof(self._registers))

    def stop_at(self, numbers: list[int]) -> None:
        """From now on this process, and what it starts, stops for its tracer at these calls alone: seccomp(2)."""
        load, equal, give = 0x20, 0x15, 0x06
        allow, tell = 0x7FFF0000, 0x7FF00000
        code = [(load, 0, 0, 0)]
        code += [(equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
        code += [(give, 0, 0, allow), (give, 0, 0, tell)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
        filtered = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
        for option, first, second in ((_NO_NEW_PRIVS, 1, None), (_SET_SECCOMP, 2, ctypes.addressof(filtered))):
            if self._prctl(option, first, second, 0, 0):
                raise OSError(ctypes.get_errno(), "seccomp can not be used")


def trace(
    work: Callable[[], str],
    entering: Callable[[Call], Fail | Short | None],
    leaving: Callable[[Call, int], None] | None = None,
    *,
    names: Collection[str] | None = None,
    most: int = 1_000_000,
) -> str:
    """Do work in a forked child and see its calls; gives what `work` gives, or "died: ..." where the child did.

    Parameters
    ----------
    work : callable giving a str
        What it does is traced, from its begin to its end; then the child is killed. It must not raise.
    entering, leaving : callable
        Before each call, where it may be changed, and after it, with what it returns: a negative errno where it failed.
    names : collection of str, optional
        The calls to see: all of `NAMES` by default.
    most : int
        A child that makes more calls than that is killed: it goes round in circles.
    """
    numbers = [number for number, name in NAMES.items() if names is None or name in names]
    ptrace = _Ptrace()
    told = mmap.mmap(-1, _TOLD)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _do(ptrace, work, numbers, told)
    try:
        os.waitpid(child, _WALL)
        ptrace(_SETOPTIONS, child, _OPTIONS)
        ptrace(_CONT, child)
        how = _follow(ptrace, child, entering, leaving, most)
    except BaseException:
        _kill(child)
        raise
    length = int.from_bytes(told[:8], "little")
    text = told[8 : 8 + length].decode("utf-8", "replace")
    return text[1:] if text.startswith("=") and not how else f"died: {how or text}"


def _do(ptrace: _Ptrace, work: Callable[[], str], numbers: list[int], told: mmap.mmap) -> None:
    try:
        ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        ptrace.stop_at(numbers)
        text = f"={work()}"
    except BaseException:
        text = traceback.format_exc()
    content = text.encode("utf-8", "replace")[: _TOLD - 8]
    told[8 : 8 + len(content)] = content  # through shared memory, as a call might fail
    told[:8] = len(content).to_bytes(8, "little")
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # sent to the process, any thread of it might take it
    os._exit(1)


def _follow(
    ptrace: _Ptrace,
    child: int,
    entering: Callable[[Call], Fail | Short | None],
    leaving: Callable[[Call, int], None] | None,
    most: int,
) -> str:
    """Until the child's work is done, and it is gone; how it died where it did."""
    inside: dict[int, tuple[Call, Fail | Short | None]] = {}
    seen = 0
    while True:
        thread, status = os.waitpid(-1, _WALL)
        if not os.WIFSTOPPED(status):
            inside.pop(thread, None)
            if thread == child:
                return f"status {os.waitstatus_to_exitcode(status)}"
            continue
        how, stopped = _CONT, os.WSTOPSIG(status)
        if status >> 8 == signal.SIGTRAP | _AT_CALL << 8:
            seen += 1
            if seen > most:
                _kill(child)
                return "status -9"
            call, verdict = _enter(ptrace, thread, entering)
            if leaving is not None or isinstance(verdict, Short) or (verdict and call.name in _DONE_ALL_THE_SAME):
                inside[thread] = call, verdict
                how = _SYSCALL  # until it is done
            stopped = 0
        elif stopped == signal.SIGTRAP | 0x80:
            _leave(ptrace, thread, *inside.pop(thread), leaving)
            stopped = 0
        elif stopped == signal.SIGSTOP and thread == child:
            _kill(child)
            return ""
        elif stopped in (signal.SIGSTOP, signal.SIGTRAP):  # a new thread, or that there is one
            stopped = 0
        ptrace(how, thread, stopped)


def _kill(child: int) -> None:
    """Until the child is gone: threads are traced one by one, and a process ends when each was waited for."""
    os.kill(child, signal.SIGKILL)
    while os.waitpid(-1, _WALL)[0] != child:
        pass


def _enter(
    ptrace: _Ptrace, thread: int, entering: Callable[[Call], Fail | Short | None]
) -> tuple[Call, Fail | Short | None]:
    registers = ptrace.registers(thread)
    call = Call(NAMES[registers[_ORIG_RAX]], tuple(registers[at] for at in _ARGUMENTS), thread)
    verdict = entering(call)
    if isinstance(verdict, Fail) and call.name not in _DONE_ALL_THE_SAME:
        registers = ptrace.registers(thread)
        registers[_ORIG_RAX] = 2**64 - 1  # no call has this number: the kernel makes none, and gives back what is here
        registers[_RAX] = 2**64 - verdict.errno
        ptrace.set_registers(thread)
    elif isinstance(verdict, Short):
        registers = ptrace.registers(thread)
        registers[_RDX] = verdict.length
        ptrace.set_registers(thread)
    return call, verdict


def _leave(
    ptrace: _Ptrace,
    thread: int,
    call: Call,
    verdict: Fail | Short | None,
    leaving: Callable[[Call, int], None] | None,
) -> None:
    registers = ptrace.registers(thread)
    if isinstance(verdict, Fail):
        registers[_RAX] = 2**64 - verdict.errno
        ptrace.set_registers(thread)
    elif isinstance(verdict, Short):  # the kernel leaves that register as it was, and compilers know it
        registers[_RDX] = call.arguments[2]
        ptrace.set_registers(thread)
    result = registers[_RAX]
    if leaving is not None:
        leaving(call, result - 2**64 if result >= 2**63 else result)
