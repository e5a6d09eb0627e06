"""The one instruction that brings memory near before it is needed, for loops that know where they will read."""

from __future__ import annotations

from typing import Any

__all__ = ["prefetching"]


def prefetching() -> dict[str, Any]:
    """``fetch(array, at)``: have the processor bring element `at`; a hint that never fails, at any address.

    LLVM's ``llvm.prefetch``, which is nothing at all on a processor that lacks it. For `Kernel(needs=...)`.
    """
    from llvmlite import ir
    from numba import types
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

    return {"fetch": fetch}
