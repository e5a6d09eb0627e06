"""Compiled loops, one topic a module; each has a plain twin that tests compare it with.

Importing this package imports numba and makes it ready: cached machine code is then loaded in milliseconds.
"""

from numba import njit


@njit(cache=True)
def _nothing() -> None:
    return


# numba fills its registries at the first call of any function, in a third of a second. Whoever imports a kernel is
# about to call it; taking that time here keeps it out of the first batch where the import was made beforehand.
_nothing()
