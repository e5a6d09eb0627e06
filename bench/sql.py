"""A table of triples in PostgreSQL to a store: time and peak anonymous memory, beside reading the same answer whole.

A triple is (int, int, real): 2 million rows x 100,000 features where there are 20 million, in no order. The server is a
real one, started on loopback from the system's package in a folder of its own (see `tests/postgresql.py`), or one of
yours with ``--dsn``, in whose table sparsestore_triples they are made. *drained* is the same query by the same driver,
batch by batch to its end, nothing kept: what server and driver alone take. The sums of rows, features and values are
compared with the server's.

    python bench/sql.py [--millions 20] [--rounds 3] [--max-bytes 1GiB] [--dsn ADDRESS] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from triples import WATCH, tell

sys.path.append(str(Path(__file__).parents[1] / "tests"))

FEATURES = 100_000
TABLE = "sparsestore_triples"
QUERY = f"select r, f, x from {TABLE}"

OURS = """
from sparsestore.convert import convert
address, dst, limit, query = sys.argv[1:5]
given = dict(row="r", feature="f", value="x", progress=False)
convert(address, dst + "-small", sql=query + " limit 1000", **given)
start = time.perf_counter()
convert(address, dst, sql=query, max_bytes=limit, **given)
print(time.perf_counter() - start, peak)
"""

DRAINED = """
from adbc_driver_postgresql import dbapi
address, _, _, query = sys.argv[1:5]
start, n = time.perf_counter(), 0
with dbapi.connect(address) as connection, connection.cursor() as cursor:
    cursor.execute(query)
    for batch in cursor.fetch_record_batch():
        n += batch.num_rows
print(time.perf_counter() - start, peak)
"""


@contextlib.contextmanager
def database(dsn: str | None, folder: Path) -> Iterator[str]:
    """Address of the server that was given, or of one that lives as long as this."""
    if dsn is not None:
        yield dsn
        return
    import postgresql

    with postgresql.server(folder) as port:
        yield f"postgresql://tester:{quote(postgresql.PASSWORD)}@127.0.0.1:{port}/postgres"


def fill(address: str, n: int) -> list[int]:
    """Make the table, and give the sums of its columns."""
    from adbc_driver_postgresql import dbapi

    rows = max(n // 10, 1)
    with dbapi.connect(address, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"drop table if exists {TABLE}")
        cursor.execute(
            f"create unlogged table {TABLE} as select (k * 7919 % {rows})::int r, "
            f"((k * 104729 + k / {rows}) % {FEATURES})::int f, (k % 9 + 1)::real x "
            f"from generate_series(1::bigint, {n}) k"
        )
        cursor.execute(f"select sum(r::bigint)::bigint, sum(f::bigint)::bigint, sum(x::bigint)::bigint from {TABLE}")
        found = cursor.fetchone()
    return [] if found is None else [int(value) for value in found]


def sums(store: Path) -> list[int]:
    """The same of what the store has, where no two triples are at one place."""
    import sparsestore as ss

    opened, found = ss.open(store), np.zeros(3, np.int64)
    for start in range(0, opened.shape[0], 100_000):
        part = opened[start : start + 100_000].tocoo()
        found += [(part.coords[0] + start).sum(), part.coords[1].sum(), part.data.astype(np.int64).sum()]
    return [int(value) for value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-bytes", default="1GiB")
    parser.add_argument("--dsn", help="of a server to use; by default one is started")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    n = int(given.millions * 1e6)
    with tempfile.TemporaryDirectory(prefix="pytest-", dir=given.folder) as name:
        (server := Path(name) / "server").mkdir()
        found: dict[str, list[list[float]]] = {"sparsestore": [], "drained": []}
        with database(given.dsn, server) as address:
            expected = fill(address, n)
            for _ in range(given.rounds):
                for what, code in (("sparsestore", OURS), ("drained", DRAINED)):
                    dst = Path(name) / "store"
                    for each in (dst, Path(name) / "store-small"):
                        shutil.rmtree(each, ignore_errors=True)
                    command = [sys.executable, "-c", WATCH + code, address, dst, given.max_bytes, QUERY]
                    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
                    found[what].append([float(word) for word in done.stdout.split()[-2:]])
                    if what == "sparsestore" and (there := sums(dst)) != expected:
                        raise RuntimeError(f"the store has sums {there}, the table {expected}")
    tell(found, given.millions, as_json=given.json)


if __name__ == "__main__":
    main()
