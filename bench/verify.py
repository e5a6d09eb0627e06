"""How fast does `verify` look at every byte, against reading the same files?

Data: clicks (39 entries a row, all ones, so that nearly all bytes are feature numbers) and text (tf-idf), as stores of
profile raw and compact. Measured is `examine(deep=True)`, with all cores: every byte against two checksums, every row
against the rules of CSR. Beside it the same files are read front to back, 4 MiB at a time, by one thread, as
`sparsestore bench` does, and by as many threads as there are cores. Each with the files in the page cache, and dropped
from it; everything in turns. A compact store is also decoded by a reader without checks, all cores, into memory that is
used again: no verify can be faster than that. Those in the page cache came there by being read: of what was just
written Linux keeps larger pages, which are read twice as fast. Ratios are of the medians; that of CPU seconds is what
stays of the rate of reading where other work takes a part of the cores. The rate of a compact store is given in bytes
as they are stored, and as they are decoded.

    python bench/verify.py [--data clicks text] [--stores PATH ...] [--scale 0.1] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import stage
from stage import Figure, Results, Source

import sparsestore as ss
from sparsestore.bench import machine
from sparsestore.integrity import examine
from sparsestore.manifest import read_manifest
from sparsestore.parallel import as_done, n_cores
from sparsestore.reader import Reader
from sparsestore.storage import open_storage

READ_BYTES = 4 << 20
DECODED_BYTES = 16 << 20


def read_by_all(paths: list[Path]) -> None:
    """Read files once, in threads, each some MiB at a time."""
    parts = [(path, at) for path in paths for at in range(0, path.stat().st_size, READ_BYTES)]
    rooms = [bytearray(READ_BYTES) for _ in range(n_cores())]

    def read(part: tuple[Path, int]) -> None:
        path, at = part
        room = rooms.pop()
        with path.open("rb", buffering=0) as file:
            file.seek(at)
            file.readinto(room)
        rooms.append(room)

    for _ in as_done(read, parts):
        pass


def decode_by_all(path: Path) -> None:
    """Decode feature numbers and values once, with all cores, some MiB at a time, and do nothing with them."""
    with ss.open(path, check="never") as store:
        for number in range(len(store._reader.lines)):
            segment = store._reader.segment(number)
            for array in filter(None, (segment.indices, segment.data)):
                chunk, n = array.spec.chunk, array.spec.n_chunks
                step = max(DECODED_BYTES // (chunk * array.spec.itemsize), 1)
                room = np.empty(step * chunk, array.spec.dtype)
                for at in range(0, n, step):
                    numbers = np.arange(at, min(at + step, n))
                    array.chunks(numbers, room[: len(numbers) * chunk])


def verified(path: Path) -> None:
    """Deep verify of a sound store."""
    problems = examine(open_storage(path), deep=True).problems
    if problems:
        raise SystemExit(f"{path} is damaged: {problems[0]}")


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def cold(files: list[Path], total: int, work: Callable[[], object]) -> tuple[float, float] | None:
    """Seconds with the files dropped from the page cache; None where they stayed."""
    machine.drop(files)
    before = machine.disk_bytes()
    found = seconds(work)
    after = machine.disk_bytes()
    return found if before is not None and after is not None and after - before > 0.9 * total else None


def bench_store(name: str, path: Path, rounds: int) -> list[Results]:
    """Rates of one store in both states of the page cache."""
    storage = open_storage(path)
    reader = Reader(storage, read_manifest(storage))
    objects = [entry for number in range(len(reader.lines)) for entry in reader.objects(number)]
    files = sorted({storage.path(entry.key) for entry in objects}, key=lambda file: -file.stat().st_size)
    decoded = reader.stored_bytes + 8 * reader.shape[0]
    profile = reader.manifest.profile
    reader.close()
    total = sum(file.stat().st_size for file in files)
    ways: dict[str, Callable[[], object]] = {
        "verify": lambda: verified(path),
        "read by 1": lambda: machine.read_files(files),
        "read by all": lambda: read_by_all(files),
    }
    if profile == "compact":
        ways["decode by all"] = lambda: decode_by_all(path)
    rows = []
    for state in ("warm", "cold") if machine.can_drop() else ("warm",):
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        if machine.can_drop():
            machine.drop(files)
        machine.read_files(files)
        verified(path)  # loads what is compiled
        for _ in range(rounds):
            for way, work in ways.items():
                found = seconds(work) if state == "warm" else cold(files, total, work)
                if found is not None:
                    taken[way].append(found)
        if not all(taken.values()):
            print(f"{name} stays in the page cache: no cold figures", file=sys.stderr)
            continue
        rates = {way: Figure([total / s / 1e9 for s, _ in found]) for way, found in taken.items()}
        row: Results = {"data": name, "profile": profile, "MB": total / 1e6, "files": state}
        row |= {f"{way} GB/s": rate for way, rate in rates.items()}
        row["of 1"] = rates["verify"].over(rates["read by 1"])
        row["of all"] = rates["verify"].over(rates["read by all"])
        cpu = {way: Figure([1 / s for _, s in found]) for way, found in taken.items()}
        row["of all, by CPU"] = cpu["verify"].over(cpu["read by all"])
        if profile == "compact":
            row["of decoding"] = rates["verify"].over(rates["decode by all"])
            row["decoded GB/s"] = Figure([decoded / s / 1e9 for s, _ in taken["verify"]])
        rows.append(row)
    return rows


def bench(given: argparse.Namespace) -> list[Results]:
    rows = []
    for path in given.stores:
        rows += bench_store(path.name, path, given.rounds)
    if not given.stores:
        with stage.scratch(given.home) as folder:
            for name in given.data:
                source = Source(stage.data_set(given.home, name, given.scale))
                for profile in ("raw", "compact"):
                    path = folder / f"{name}-{profile}"
                    columns = {"y": np.asarray(source.labels)}
                    ss.convert(source.csr(), path, columns=columns, profile=profile, progress=False)
                    rows += bench_store(name, path, given.rounds)
    return [{"title": f"Deep verify on {n_cores()} cores", "rows": rows}]


if __name__ == "__main__":
    parser = stage.arguments(__doc__, rounds=7)
    parser.add_argument("--data", nargs="*", choices=("clicks", "cells", "text"), default=["clicks", "text"])
    parser.add_argument("--stores", nargs="*", type=Path, default=[], help="measure these in place of making some")
    stage.run(parser, bench)
