"""Bounded memory is a promise: what reading a store may hold, measured as the peak of anonymous memory in a process."""

import subprocess
import sys
from pathlib import Path

import pytest
from peak import peak_of

from sparsestore import memory
from sparsestore.audit import most_bytes
from sparsestore.parallel import n_cores

STORE = """
import sys
import numpy as np
import scipy.sparse as sp
import sparsestore as ss

path, batch_size, window_rows = sys.argv[1], 512, 16_384
rng = np.random.default_rng(0)
n, a_row = 1_000_000, 20
indices = (np.arange(a_row, dtype=np.int32) * 1000 + rng.integers(0, 1000, (n, a_row), np.int32)).reshape(-1)
x = sp.csr_array((rng.random(n * a_row, np.float32), indices, np.arange(0, n * a_row + 1, a_row)), shape=(n, 20_000))
ss.convert(x, path, columns={"y": rng.integers(0, 2, n)}, profile=sys.argv[2])
ss.convert(x[:9], path + ".small", columns={"y": rng.integers(0, 2, 9)}, profile=sys.argv[2])
"""

READ = """
import sys
import sparsestore as ss

def work(stop=None):
    store = ss.open(sys.argv[1])
    for i, batch in enumerate(store.loader(512, shuffle=True, seed=0, window_rows=16_384)):
        if i == stop:
            break

work(3)
"""

VERIFY = """
import sys
import sparsestore as ss

def work(path=sys.argv[1]):
    assert ss.open(path).verify() == []

work(sys.argv[1] + ".small")  # compiles what is not compiled yet
"""


TEXTS = """
import sys
import numpy as np
import scipy.sparse as sp
import sparsestore as ss

path, how, n = sys.argv[1], sys.argv[2], 131_072
texts = [f"label {i % 50}" for i in range(n)]
texts[7] = "z" * 1000  # at this width all of them take 500 MiB
x = sp.csr_array((n, 10), dtype=np.float32)

def work(n=n, path=path):
    if how in ("list", "array"):
        columns = {"text": texts[:n] if how == "list" else np.array(texts[:n], object)}
        ss.convert(x[:n], path, columns=columns, max_bytes="24MiB")
    elif how == "writer":
        with ss.create(path, n_features=10) as writer:
            writer.append(x[:n], text=texts[:n])
    elif how == "blocks":
        ss.convert([(x[:n], {"text": texts[:n]})], path, max_bytes="24MiB")
    else:
        ss.open(path).split(0.5, **{how: "text"})

if how in ("stratify", "group"):
    for rows, store in ((n, path), (10, path + ".small")):
        ss.convert(x[:rows], store, columns={"text": texts[:rows]})
work(10, path + ".small")
"""


@pytest.mark.parametrize("how", ["list", "array", "writer", "blocks", "stratify", "group"])
def test_a_long_text_takes_its_length_once(tmp_path: Path, how: str) -> None:
    assert peak_of(TEXTS, tmp_path / "s.zarr", how) <= 40 << 20


@pytest.fixture(scope="module", params=["raw", "compact"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "s.zarr"
    subprocess.run([sys.executable, "-c", STORE, str(path), request.param], check=True)
    return path


def test_a_shuffled_epoch_holds_three_windows_and_about_a_byte_a_row(path: Path) -> None:
    n_rows, a_row, window_rows = 1_000_000, 20, 16_384
    window = window_rows * (a_row * 8 + 16 + 8)  # entries; offset and row number; label
    slack = 12 << 20  # what allocators keep: on a busy machine now and then more, so the least of three counts
    assert min(peak_of(READ, path) for _ in range(3)) <= 3 * window + 1.2 * n_rows + slack


def test_verify_holds_what_it_says(path: Path) -> None:
    assert peak_of(VERIFY, path) <= most_bytes(n_cores(), 1_000_000)


def test_free_memory_is_what_the_kernel_says() -> None:
    free = memory.free_bytes()
    if free is None:
        pytest.skip("the system does not tell")
    assert 1 << 20 < free < 1 << 50


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limited", ["own", "outer", "none"])
def test_limits_of_control_groups_count(
    version: int, limited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of cgroups(7), as a container sees them; what caches files can be taken."""
    names = ("memory.max", "memory.current", "file", "max")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", str(2**63 - 4096))
    limit, usage, cached, nothing = names
    outer = tmp_path / "mount" / "outer"
    own = outer / "own"
    own.mkdir(parents=True)
    for folder, name in ((outer, "outer"), (own, "own")):
        (folder / limit).write_text("1000000\n" if name == limited else nothing + "\n")
        (folder / usage).write_text("700000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} 600000\n")
    (tmp_path / "self").write_text("0::/outer/own\n" if version == 2 else "4:cpu,memory:/outer/own\n0::/\n")
    kind = "cgroup2 rw" if version == 2 else "cgroup rw,memory"
    (tmp_path / "mounts").write_text(f"none {tmp_path / 'mount'} {kind} 0 0\n")
    monkeypatch.setattr(memory, "_SELF", tmp_path / "self")
    monkeypatch.setattr(memory, "_MOUNTS", tmp_path / "mounts")
    free = memory.free_bytes()
    assert free is not None
    assert (free == 900_000) == (limited != "none")


@pytest.mark.skipif(memory._malloc_trim() is None, reason="glibc alone keeps so much")
def test_memory_that_was_freed_is_given_back() -> None:
    code = """
    import sparsestore.memory
    held = [bytes(100_000) for _ in range(1000)]  # below what the C library maps for itself
    kept = held[::100]

    def work():
        held.clear()
        sparsestore.memory.give_back()
        assert anonymous() < before - 50_000_000, (anonymous(), before)
    """
    peak_of(code)
