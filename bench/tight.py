"""What is left of the speed when the data do not fit in memory?

Data: clicks, cells and text, as in `read.py`, shuffled once. Each epoch is a process of its own, in a memory cgroup of
a quarter of the bytes of the matrix as CSR that counts page cache too, and starts with no page of the store in the
cache; the process joins after its imports. In turns with it, under the same cap and as cold, a process reads the same
files from end to end in pieces of 4 MiB: the rate of the disk, which no reader can beat. "MB read" is what the kernel
fetched from disk for the process; over the size of the store it is the read amplification. "killed" counts the runs
that needed more memory, "late" those that were not done after `--cap` seconds. Rivals under such a cap: the action
`tight` of `peers/`. Needs root, or $PEERS_CGROUP: see `peers/README.md`.

    python bench/tight.py [--data clicks cells text] [--tight 0.25] [--batch 4096] [--rounds 5] [--cap 20] [--json]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import stage
from stage import ChildError, Results, Source
from worker import bytes_read_from_disk, enter

import sparsestore as ss

PIECE_BYTES = 4 << 20


def sequential(store: str, tiny: str, procs: str, data: str, batch: int) -> Results:
    """Read all files of the store from end to end."""
    del tiny, batch
    files, piece = stage.measure.files_under(store), bytearray(PIECE_BYTES)
    enter(Path(procs))
    start, cpu, read = time.perf_counter(), time.process_time(), bytes_read_from_disk()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    return figures(Source(data).n_rows, start, cpu, read)


def epoch(store: str, tiny: str, procs: str, data: str, batch: int) -> Results:
    """Open the store, and read a shuffled epoch."""
    next(iter(ss.open(tiny).loader(1, shuffle=True, seed=0)))  # what is imported and loaded at first use
    source = Source(data)
    wanted = source.n_rows, source.nnz, int(source.labels.sum(dtype=np.int64))
    enter(Path(procs))
    start, cpu, read = time.perf_counter(), time.process_time(), bytes_read_from_disk()
    found = (0, 0, 0)
    for b in ss.open(store).loader(batch, shuffle=True, seed=1):
        found = found[0] + len(b.y), found[1] + b.x.nnz, found[2] + int(b.y.sum(dtype=np.int64))
    if found != wanted:
        raise RuntimeError(f"the epoch had {found} rows, entries and labels, expected {wanted}")
    return figures(source.n_rows, start, cpu, read)


def figures(rows: int, start: float, cpu: float, read: int) -> Results:
    seconds = time.perf_counter() - start
    megabytes = (bytes_read_from_disk() - read) / stage.MIB
    return {
        "rows/s": rows / seconds,
        "MB read": megabytes,
        "MB/s": megabytes / seconds,
        "CPU s": time.process_time() - cpu,
    }


READERS = {"sequential": sequential, "store": epoch}


def capped(reader: str, max_bytes: float, store: Path, limit_s: float, **options: object) -> Results | str:
    """One run from cold under the cap, or what became of it."""
    stage.measure.drop(store)
    cap = stage.measure.MemoryCap(max_bytes)
    try:
        return stage.in_child(reader, limit_s=limit_s, store=store, procs=cap.procs, **options)
    except ChildError as error:
        if not (error.late or cap.was_exceeded()):
            raise
        return "late" if error.late else "killed"
    finally:
        cap.remove()


def bench(given: argparse.Namespace) -> list[Results]:
    rows: list[Results] = []
    for name in given.data:
        data = stage.data_set(given.home, name, given.scale)
        source = Source(data)
        arrays = (source.indptr, source.indices, source.data, source.labels)
        max_bytes = given.tight * sum(array.nbytes for array in arrays)
        with stage.scratch(given.home) as folder:
            tiny, store = folder / "tiny", folder / "store"
            ss.convert(np.eye(8), tiny, columns={"y": np.arange(8)}, progress=False)
            columns = {"y": source.labels}
            ss.convert(source.csr(), store, columns=columns, shuffle=True, seed=0, progress=False)
            size = stage.measure.size_of(store) / stage.MIB
            runs: dict[str, list[Results | str]] = {reader: [] for reader in READERS}
            options = {"tiny": tiny, "data": data, "batch": given.batch}
            for _ in range(given.rounds):
                for reader, found in runs.items():
                    found.append(capped(reader, max_bytes, store, given.cap, **options))
        base = None
        for reader, found in runs.items():
            row: Results = {"data": data.name, "cap MB": max_bytes / stage.MIB, "store MB": size, "reader": reader}
            whole = [result for result in found if not isinstance(result, str)]
            if whole:
                figure = stage.figures(whole)
                base = base or figure["rows/s"]
                row |= figure
                row["to sequential"] = figure["rows/s"].over(base)
                row["MB read / store MB"] = figure["MB read"].median / size
            rows.append(row | {end: found.count(end) or None for end in ("killed", "late")})
    return [{"title": f"Cold, memory capped at {given.tight:g} of the CSR bytes", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__)
    names = ("clicks", "cells", "text")
    parser.add_argument("--data", nargs="+", choices=names, default=names)
    parser.add_argument("--tight", type=float, default=0.25, help="cap over the bytes of the matrix as CSR (0.25)")
    parser.add_argument("--batch", type=int, default=4096, help="rows a batch (4096)")
    parser.add_argument("--cap", type=float, default=20, help="seconds after which a run is given up (20)")
    try:
        stage.run(parser, bench, READERS)
    except stage.measure.MemoryCap.Unavailable as reason:
        sys.exit(f"error: {reason}")
