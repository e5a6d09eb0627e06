"""Machine code in one piece: made of an object file once, put into memory wherever it is needed.

An object file, what a compiler gives, is of no use without a linker; a shared library needs the dynamic loader, its
tables of symbols, and a file system that allows execution. A kernel needs none of that. Its code refers to its own
constants by their distance, and to nothing outside but the few routines by which C copies and clears memory. So
`build` lays code and constants one behind the other, and `load` copies the result into fresh memory, which is then
made executable and no longer writable. x86-64 with the calling convention of System V only.

The layout of object files is in the System V gABI, chapter 4 ("Object Files"), that of relocations in the x86-64 psABI,
section 4.4.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import struct
from typing import Any, NamedTuple

__all__ = ["UnsuitableError", "build", "load"]

ROUTINES = ("memcpy", "memmove", "memset")
"""What code may call, because every process has it: compilers make such calls of plain loops."""

# An image begins with its entry's distance from its own start, room for the addresses of the routines, and for each
# routine a jump to the address there, which code calls in its place.
_WORDS = struct.Struct(f"<{1 + len(ROUTINES)}Q")
_JUMP = struct.Struct("<2sixx")
_JUMP_CODE = b"\xff\x25"  # jmp *distance(%rip)
# Then comes the code, always from here: some processors run a short loop half as fast at one place of eight as at the
# others, so that loops should stay where they were timed.
_BEGIN = 128

_FILE = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _SYMTAB, _RELA, _REL = 1, 2, 4, 9
_WRITE, _ALLOC, _TLS = 0x1, 0x2, 0x400
_DISTANCES = {2: struct.Struct("<i"), 4: struct.Struct("<i"), 24: struct.Struct("<q")}  # PC32, PLT32, PC64


class UnsuitableError(Exception):
    """The kernel has to be called by way of numba; the message says why."""


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def build(object_file: bytes, symbol: str) -> bytes:
    """Image of an object file, entered at a function.

    Parameters
    ----------
    object_file : bytes
        Position-independent code for x86-64, relocatable ELF.
    symbol : str
        Name of the function.

    Raises
    ------
    UnsuitableError
        Where the code needs more than itself, such as other functions or variables, or the file is damaged.
    """
    try:
        return _build(object_file, symbol.encode())
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise UnsuitableError(f"the object file is damaged: {error}") from error


def _build(file: bytes, symbol: bytes) -> bytes:
    magic, kind, machine, _, _, _, table, _, _, _, _, _, n_sections, _ = _FILE.unpack_from(file)
    if magic[:6] != b"\x7fELF\2\1" or (kind, machine) != (_RELOCATABLE, _X86_64):
        raise UnsuitableError("not an object file of x86-64")
    sections = [_Section(*_SECTION.unpack_from(file, table + i * _SECTION.size)) for i in range(n_sections)]

    image = bytearray(_WORDS.size)
    routines = {}
    for i, name in enumerate(ROUTINES):
        routines[name.encode()] = len(image)
        image += _JUMP.pack(_JUMP_CODE, 8 * (1 + i) - (len(image) + 6))  # counted from the next instruction, at 6
    image += bytes(-len(image) % _BEGIN)
    placed = {}
    for number, section in enumerate(sections):
        # what can be written is what only wrappers use; tables for unwinding have a type of their own
        if section.type == _PROGBITS and section.flags & (_ALLOC | _WRITE | _TLS) == _ALLOC:
            if section.align > mmap.PAGESIZE:
                raise UnsuitableError(f"constants aligned to {section.align} bytes")
            image += bytes(-len(image) % max(section.align, 1))
            placed[number] = len(image)
            image += _contents(file, section)

    def address(name: bytes, section: int, value: int) -> int:
        if section in placed and value < sections[section].size:
            return placed[section] + value
        if section == 0 and name in routines:
            return routines[name]
        raise UnsuitableError(f"it needs {name.decode(errors='replace') or 'memory of its own'}")

    symbols = []
    for section in sections:
        if section.type == _SYMTAB:
            names = _contents(file, sections[section.link])
            for name, _, _, where, value, _ in _SYMBOL.iter_unpack(_contents(file, section)):
                symbols.append((names[name : names.index(b"\0", name)], where, value))
    for section in sections:
        if section.type in (_RELA, _REL) and section.info in placed:
            start, size = placed[section.info], sections[section.info].size
            for offset, info, addend in _RELOCATION.iter_unpack(_contents(file, section)):
                distance = _DISTANCES.get(info & 0xFFFFFFFF)
                if section.type == _REL or distance is None:
                    raise UnsuitableError(f"relocation {info & 0xFFFFFFFF} of {symbols[info >> 32][0]!r}")
                if offset + distance.size > size:
                    raise UnsuitableError("a relocation lies outside of its section")
                distance.pack_into(image, start + offset, address(*symbols[info >> 32]) + addend - (start + offset))
    entry = next((address(*found) for found in symbols if found[0] == symbol), None)
    if entry is None:
        raise UnsuitableError(f"the object file has no {symbol.decode()}")
    _WORDS.pack_into(image, 0, entry, *[0] * len(ROUTINES))
    return bytes(image)


def _contents(file: bytes, section: _Section) -> bytes:
    found = file[section.offset : section.offset + section.size]
    if len(found) != section.size:
        raise UnsuitableError("the object file is cut off")
    return found


def load(image: bytes) -> int:
    """Address of the entry of an image, which is put into memory and stays there as long as the process lives.

    Nothing is checked: whoever loads an image has to know that it is as it was built.

    Raises
    ------
    OSError
        Where a process may not make memory executable.
    MemoryError
    """
    c, addresses = _library()
    entry = _WORDS.unpack_from(image)[0]
    image = _WORDS.pack(entry, *addresses) + image[_WORDS.size :]
    # never given back, not even at exit: threads of the background may still be inside
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = c.mmap(None, len(image), mmap.PROT_READ | mmap.PROT_WRITE, private, -1, 0)
    if memory == ctypes.c_void_p(-1).value:
        if ctypes.get_errno() == errno.ENOMEM:
            raise MemoryError(f"{len(image)} bytes for machine code can not be mapped")
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    ctypes.memmove(memory, image, len(image))
    if c.mprotect(memory, len(image), mmap.PROT_READ | mmap.PROT_EXEC):
        number = ctypes.get_errno()
        c.munmap(memory, len(image))
        raise OSError(number, os.strerror(number))
    return int(memory) + int(entry)


@functools.cache
def _library() -> tuple[Any, list[int | None]]:
    """The C library of this process, and the addresses of the routines."""
    c = ctypes.CDLL(None, use_errno=True)
    c.mmap.restype = ctypes.c_void_p
    c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return c, [ctypes.cast(getattr(c, name), ctypes.c_void_p).value for name in ROUTINES]
