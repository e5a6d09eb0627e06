"""crc32c of a piece of 16 KiB inside of compiled loops, by all that a core has for it.

Two kinds of instructions compute it, in different parts of a core, which runs them side by side:

- crc32 takes eight bytes in 3 cycles. On most processors another may start each cycle, so three independent checksums
  run over three lanes of a piece; on an early AMD Zen none starts before the last has ended.
- A multiplication without carries (pclmulqdq) folds 16 bytes into the 16 that lie 64 bytes on, with the same checksum.
  Four such sums run over the rest of a piece, which comes first.

In each step the sums take 64 bytes and each lane 24. Lanes are joined by tables. See V. Gopal et al., "Fast CRC
computation for generic polynomials using PCLMULQDQ instruction" (Intel, 2009) and "Fast CRC computation for iSCSI
polynomial using CRC32 instruction" (Intel, 2011); P. Cawley, "Faster CRC32-C on x86" (corsix.org, 2024), who runs both
at once; and M. Adler's crc32c.c, whose tables these are.
"""

# ruff: noqa: F821 - the steps use names that exist only in what numba compiles: see the bare annotations

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

from sparsestore.kernels.compiler import inlined

__all__ = [
    "FOLDED",
    "LANE",
    "PIECE",
    "STEPS",
    "WORDS",
    "LackingInstructionError",
    "instructions",
    "shift_table",
    "shifts",
    "steps",
]

Array = NDArray[Any]

PIECE = 16384  # bytes, as in sparsestore.checksum: machine code is kept by what stands in this file
# of a piece, in words of 8 bytes: what is folded, then three lanes
WORDS = PIECE // 8
STEPS = 120
FOLDED = 8 + 8 * STEPS
LANE = 3 * STEPS
_FACTORS = 0x740EEF02, 0x9E4ADDF8
"""x^(512 + 32) and x^(512 - 32) modulo the polynomial, each with its bits reversed, and shifted by one as a product of
reversed factors is: they take the lower and the upper half of 16 bytes 512 bits on."""


# names that `instructions` gives to the functions that `steps` makes part of kernels
crc32_of_eight: Any
fold: Any
high: Any
low: Any
pair: Any
sixteen: Any
xor: Any


class LackingInstructionError(Exception):
    """No instruction of this machine computes crc32c, or none may be used."""


def instructions() -> dict[str, Any]:
    """Functions for kernels, an instruction or two each. For ``Kernel(needs=...)``.

    ``crc32_of_eight(crc, eight)`` is the crc32c of eight bytes more, not complemented. Of 16 bytes in one register:
    ``sixteen(words, at)`` loads them, ``pair(low, high)`` makes them, ``low`` and ``high`` take them apart, ``xor``
    adds them; ``fold(x, factors)`` is the sum of the products of their lower and of their upper halves.

    Raises
    ------
    LackingInstructionError
    """
    import platform

    import llvmlite.binding as llvm

    lacks = platform.machine() not in ("x86_64", "AMD64")  # on others LLVM may not even tell
    if lacks or not all(llvm.get_host_cpu_features().get(name) for name in ("sse4.2", "pclmul")):
        raise LackingInstructionError(platform.machine())
    from numba.core import config

    if config.DISABLE_JIT or config.CPU_NAME or config.CPU_FEATURES:
        raise LackingInstructionError("numba is told to compile for another machine, or not at all")
    return _intrinsics()


@functools.cache
def _intrinsics() -> dict[str, Any]:
    """See `instructions`. Once a process: numba knows each type by its identity."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic, models, register_model

    word, short, byte = ir.IntType(64), ir.IntType(32), ir.IntType(8)
    vector = ir.VectorType(word, 2)

    class TwoWords(types.Type):  # type: ignore[misc]
        """16 bytes in a register."""

    @register_model(TwoWords)
    class TwoWordsModel(models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, vector)

    two = TwoWords(name="TwoWords")

    def call(builder: Any, name: str, result: Any, arguments: Any) -> Any:
        kinds = [argument.type for argument in arguments]
        return builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(result, kinds)), arguments)

    @intrinsic
    def crc32_of_eight(_typing: Any, _crc: Any, _eight: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return call(builder, "llvm.x86.sse42.crc32.64.64", word, arguments)

        return types.uint64(types.uint64, types.uint64), emit

    @intrinsic
    def sixteen(_typing: Any, words: Any, _at: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            place = builder.bitcast(builder.gep(array.data, (arguments[1],)), vector.as_pointer())
            return builder.load(place, align=8)

        return two(words, types.uint64), emit

    @intrinsic
    def pair(_typing: Any, _low: Any, _high: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            found = ir.Constant(vector, ir.Undefined)
            for i, half in enumerate(arguments):
                found = builder.insert_element(found, half, short(i))
            return found

        return two(types.uint64, types.uint64), emit

    @intrinsic
    def low(_typing: Any, _x: Any) -> Any:
        return types.uint64(two), lambda _context, builder, _signature, given: builder.extract_element(
            given[0], short(0)
        )

    @intrinsic
    def high(_typing: Any, _x: Any) -> Any:
        return types.uint64(two), lambda _context, builder, _signature, given: builder.extract_element(
            given[0], short(1)
        )

    @intrinsic
    def xor(_typing: Any, _x: Any, _y: Any) -> Any:
        return two(two, two), lambda _context, builder, _signature, given: builder.xor(*given)

    @intrinsic
    def fold(_typing: Any, _x: Any, _factors: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            products = [
                call(builder, "llvm.x86.pclmulqdq", vector, (*arguments, byte(halves))) for halves in (0x00, 0x11)
            ]
            return builder.xor(*products)

        return two(two, two), emit

    found = (crc32_of_eight, sixteen, pair, low, high, xor, fold)
    return {function.__name__: function for function in found}


def _begin_piece(words: Array, at: Any) -> Any:
    """A piece that begins at word `at`, before its first step.

    Gives where its next words to fold are, and the first of its lanes; four sums, and the checksums of three lanes.
    """
    x0 = xor(sixteen(words, at), pair(np.uint64(0xFFFFFFFF), np.uint64(0)))
    x1 = sixteen(words, at + np.uint64(2))
    x2 = sixteen(words, at + np.uint64(4))
    x3 = sixteen(words, at + np.uint64(6))
    zero = np.uint64(0)
    return at + np.uint64(8), at + np.uint64(FOLDED), x0, x1, x2, x3, zero, zero, zero


def _no_piece() -> Any:
    """A state for a piece of which no byte may be read; of no meaning."""
    nothing, zero = pair(np.uint64(0), np.uint64(0)), np.uint64(0)
    return zero, zero, nothing, nothing, nothing, nothing, zero, zero, zero


def _step_piece(words: Array, factors: Any, state: Any) -> Any:
    """One step of a piece."""
    at, lane, x0, x1, x2, x3, a, b, c = state
    x0 = xor(fold(x0, factors), sixteen(words, at))
    x1 = xor(fold(x1, factors), sixteen(words, at + np.uint64(2)))
    x2 = xor(fold(x2, factors), sixteen(words, at + np.uint64(4)))
    x3 = xor(fold(x3, factors), sixteen(words, at + np.uint64(6)))
    for _ in range(LANE // STEPS):
        a = crc32_of_eight(a, words[lane])
        b = crc32_of_eight(b, words[lane + np.uint64(LANE)])
        c = crc32_of_eight(c, words[lane + np.uint64(2 * LANE)])
        lane += np.uint64(1)
    return at + np.uint64(8), lane, x0, x1, x2, x3, a, b, c


def _end_piece(shifts: Array, state: Any) -> Any:
    """The crc32c of a piece, after its last step."""
    _, _, x0, x1, x2, x3, a, b, c = state
    folded = np.uint64(0)
    for x in (x0, x1, x2, x3):
        folded = crc32_of_eight(crc32_of_eight(folded, low(x)), high(x))
    for k in range(4):
        byte = np.uint64(8 * k)
        c ^= np.uint64(shifts[0, k, folded >> byte & np.uint64(255)])
        c ^= np.uint64(shifts[1, k, a >> byte & np.uint64(255)])
        c ^= np.uint64(shifts[2, k, b >> byte & np.uint64(255)])
    return np.uint32(c ^ np.uint64(0xFFFFFFFF))


def _factors() -> Any:
    """What sums are folded with, in a register."""
    return pair(np.uint64(_FACTORS[0]), np.uint64(_FACTORS[1]))


def steps() -> dict[str, Any]:
    """What `instructions` gives, and the steps of a piece, for ``Kernel(needs=...)``.

    ``end_piece(shifts, state)`` is the crc32c of a piece, where ``state = begin_piece(words, at)`` and then
    `STEPS` times ``state = step_piece(words, factors(), state)``: a kernel may do other things in between.
    ``no_piece()`` is a state of the same type, for where there are no words.

    Raises
    ------
    LackingInstructionError
    """
    made = inlined((_begin_piece, _no_piece, _step_piece, _end_piece, _factors), instructions())
    return {name.removeprefix("_"): function for name, function in made.items()}


def shift_table(n_words: int) -> NDArray[np.uint32]:
    """What zeros after a message do to its crc32c: (4, 256).

    A checksum is linear in its bits, so a table of each of its four bytes will do. The C library tells where a single
    bit goes.
    """
    table, zeros = np.zeros((4, 256), np.uint32), bytes(8 * n_words)
    for bit in range(32):
        # the library complements a checksum before and after
        moved = extend(1 << bit ^ 0xFFFFFFFF, zeros) ^ 0xFFFFFFFF
        byte, low = bit // 8, 1 << bit % 8
        table[byte, low : 2 * low] = table[byte, :low] ^ np.uint32(moved)
    return table


@functools.cache
def shifts() -> NDArray[np.uint32]:
    """Tables that join the parts of a piece: what lies behind the folded part, the first lane and the second."""
    return np.stack([shift_table(n * LANE) for n in (3, 2, 1)])
