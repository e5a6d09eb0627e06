"""Wall time of `import sparsestore` and of `sparsestore info`, each in a fresh process, files in the page cache.

People run `info` by hand and in loops; both must feel instant whatever the size of the store. The median of ten runs
after one that warms the cache; exits with 1 where one is over its limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse

import sparsestore as ss

RUNS = 10
LIMITS_S = {"import sparsestore": 0.35, "sparsestore info": 0.6}


def median_s(*arguments: str) -> float:
    """Median wall seconds of a Python process."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.zarr"
        ss.convert(scipy.sparse.csr_array(np.eye(1000)), path, columns={"y": np.arange(1000)})
        found = {
            "import sparsestore": median_s("-c", "import sparsestore"),
            "sparsestore info": median_s("-m", "sparsestore", "info", str(path)),
        }
    for name, seconds in found.items():
        print(f"{name}: {seconds:.3f} s (limit {LIMITS_S[name]} s)")
    if any(seconds > LIMITS_S[name] for name, seconds in found.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
