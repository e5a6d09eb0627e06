"""The one instruction that brings memory near before it is needed, for loops that know where they will read."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["AHEAD", "prefetching"]

AHEAD = np.uint64(8)  # rows: the memory of a row comes while about that many are copied
_LINE = np.uint64(16)  # elements of 4 bytes that memory gives at once
_LINES = np.uint64(8)  # of a row: the processor sees by itself how a longer one goes on


def prefetching() -> dict[str, Any]:
    """Functions for kernels; hints that never fail, at any address. For `Kernel(needs=...)`.

    ``fetch(array, at)`` has the processor bring element `at`, ``fetch_row(array, start, length)`` the first elements of
    a row. LLVM's ``llvm.prefetch``, which is nothing at all on a processor that lacks it.
    """
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    def prefetch(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        instruction = builder.module.declare_intrinsic(
            "llvm.prefetch", (pointer,), ir.FunctionType(ir.VoidType(), (pointer, number, number, number))
        )
        at = builder.bitcast(builder.gep(array.data, (arguments[1],)), pointer)
        builder.call(instruction, (at, number(0), number(2), number(1)))  # to read, into the second-level cache
        return context.get_dummy_value()

    @intrinsic
    def fetch(_typing: Any, array: Any, _at: Any) -> Any:
        return types.void(array, types.uint64), prefetch

    @njit(inline="always")
    def fetch_row(array: Any, start: Any, length: Any) -> None:
        for line in range(_LINES):
            if np.uint64(line) * _LINE < np.uint64(length):
                fetch(array, np.uint64(start) + np.uint64(line) * _LINE)

    return {"fetch": fetch, "fetch_row": fetch_row}
