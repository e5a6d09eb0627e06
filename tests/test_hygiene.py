"""Processes that fork, are interrupted, run out of memory or descriptors, or lose files: no hang, no wrong row."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import sparsestore as ss
from sparsestore import forking

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, signals, limits as in Linux")

ROOT = Path(__file__).parents[1]
N, M = 3000, 50

COMMON = """
import faulthandler, os, resource, signal, sys, threading, time, traceback
import numpy as np
import sparsestore as ss

path = sys.argv[1]

def right(x, rows, y=None):
    "Whether these are the rows of the store: row i has 1 + i at feature i % 50, and i at (i + 7) % 50."
    rows = np.asarray(rows)
    expected = np.zeros(x.shape, np.float32)
    expected[np.arange(len(rows)), (rows + 7) % 50] = rows
    expected[np.arange(len(rows)), rows % 50] = rows + 1
    x = x if isinstance(x, np.ndarray) else x.toarray()
    return np.array_equal(x, expected) and (y is None or np.array_equal(y, rows % 3))

def epoch(view, batch_size=128, **options):
    "Read an epoch and check it; gives the row numbers in their order."
    found = []
    for batch in view.loader(batch_size, shuffle=True, seed=5, **options):
        assert right(batch.x, batch.row_ids, batch.y), "wrong rows"
        found.append(batch.row_ids)
    found = np.concatenate(found)
    assert np.array_equal(np.sort(found), np.arange(len(view))), "not every row once"
    return found

def reads(store):
    n = len(store)
    assert right(store[::5], np.arange(n)[::5])
    store.column("name")[3:9], store.plan(64), store.split(0.5)[0][:10]
    for layout in ("sparse", "dense"):
        epoch(store, layout=layout)

def in_child(work, limit_s=30):
    "Fork, and do this in the child; gives a function that waits for it."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    def wait():
        status = os.waitpid(child, 0)[1]
        if status:
            print(f"a child ended with {status}", file=sys.stderr, flush=True)
            os._exit(1)
    return wait
"""


def matrix(n: int = N) -> sp.csr_array:
    rows = np.arange(n)
    x = sp.coo_array(
        (
            np.concatenate([rows + 1, rows]).astype(np.float32),
            (np.concatenate([rows, rows]), np.concatenate([rows % M, (rows + 7) % M])),
        ),
        shape=(n, M),
    ).tocsr()
    x.eliminate_zeros()
    return sp.csr_array(x)


def columns(n: int = N) -> dict[str, Any]:
    return {"y": np.arange(n) % 3, "name": np.array([f"row {i}" for i in range(n)], object)}


@pytest.fixture(scope="module", params=["raw", "compact"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three segments."""
    path = tmp_path_factory.mktemp("hygiene") / "s.zarr"
    x, beside = matrix(), columns()
    parts = [slice(0, 1000), slice(1000, 1010), slice(1010, N)]
    for part in parts:
        cut = {name: values[part] for name, values in beside.items()}
        if part.start == 0:
            ss.convert(x[part], path, columns=cut, profile=request.param)
        else:
            ss.open(path).append(x[part], **cut)
    return path


def script(text: str, *arguments: object, limit_s: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own; its output is part of the report where it fails."""
    return subprocess.run(
        # what Python 3.12 says of a fork beside threads is what is tried here
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", COMMON + textwrap.dedent(text)]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def passes(text: str, *arguments: object, limit_s: float = 300, **environment: str) -> str:
    """Run Python that must end with 0 and say nothing of its own on standard error."""
    done = script(text, *arguments, limit_s=limit_s, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------ fork


def test_forks_at_any_moment_beside_reading_threads_read_on_in_the_child(store: Path) -> None:
    """From the first import on: threads of the parent hold every lock there is, at one fork or another."""
    passes(
        """
        store = ss.open(path)
        stop = False
        failed = []

        def reading(seed):
            try:
                while not stop:
                    mine = ss.open(path) if seed % 2 else store
                    epoch(mine)
                    assert right(mine[::7], np.arange(len(mine))[::7])
                    mine.column("name")[5:2000:3]
                    loader = mine.loader(64, shuffle=True, seed=seed)
                    next(iter(loader)); loader.state_dict()
            except BaseException as error:
                failed.append(error)
                raise

        def reads():
            assert right(store[[5, 2999, 1001]], [5, 2999, 1001])
            assert store.column("name")[1500] == "row 1500"
            first = epoch(store)
            again = ss.open(path)
            assert np.array_equal(epoch(again, columns=("y",)), first)
            again.loader(64, shuffle=True).state_dict()
            assert store.verify(deep=False) == []

        threads = [threading.Thread(target=reading, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        waits = []
        for number in range(24):
            time.sleep(0.002 * (number % 5))
            waits.append(in_child(reads))
            if number % 4 == 3:
                while waits:
                    waits.pop()()
        stop = True
        for thread in threads:
            thread.join()
        assert not failed
        epoch(store)
        """,
        store,
    )


def test_an_iterator_of_the_parent_says_so_in_the_child_and_goes_on_in_the_parent(store: Path) -> None:
    passes(
        """
        store = ss.open(path)
        for layout in ("sparse", "dense"):
            loader = store.loader(32, shuffle=True, seed=1, layout=layout)
            whole = [batch.row_ids for batch in store.loader(32, shuffle=True, seed=1)]
            second = [batch.row_ids for batch in [*loader] and loader]
            loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batch": 0})
            batches = iter(loader)
            taken = [next(batches).row_ids for _ in range(5)]

            def goes_on():
                try:
                    next(batches)
                except RuntimeError as error:
                    assert "begun in process" in str(error) and "Begin a new one here" in str(error), error
                else:
                    raise AssertionError("an iterator went on without its thread")
                # a new one reads the next epoch, as it would have in the parent
                found = [batch.row_ids for batch in loader]
                assert all(map(np.array_equal, found, second))
                batches.close()

            in_child(goes_on)()
            taken += [batch.row_ids for batch in batches]
            assert all(map(np.array_equal, taken, whole)) and len(taken) == len(whole)
        """,
        store,
    )


def worker(loader: Any) -> list[np.ndarray]:
    return [batch.row_ids for batch in loader]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_their_partitions(store: Path, method: str) -> None:
    """As the workers of a torch DataLoader do: the parent has read already, and reads meanwhile."""
    opened = ss.open(store)
    loaders = [opened.loader(50, shuffle=True, seed=2, partition=p, n_partitions=3) for p in range(3)]
    half = iter(loaders[0])
    taken = [next(half).row_ids for _ in range(3)]
    loaders[0].load_state_dict({**loaders[0].state_dict(), "batch": 0})
    with multiprocessing.get_context(method).Pool(3) as pool:
        answer = pool.map_async(worker, loaders)
        taken += [batch.row_ids for batch in half]
        found = answer.get(60)
        again = pool.map_async(worker, loaders).get(60)
    for loader, batches, second in zip(loaders, found, again, strict=True):
        here = [batch.row_ids for batch in loader]
        assert all(map(np.array_equal, here, batches))
        assert len(here) == len(batches) == len(loader)
        assert all(map(np.array_equal, here, second))
    assert all(map(np.array_equal, taken, found[0]))
    assert np.array_equal(np.sort(np.concatenate([ids for batches in found for ids in batches])), np.arange(N))


def test_a_child_appends_beside_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    ss.convert(matrix(100), path, columns=columns(100), profile="compact")
    passes(
        """
        store = ss.open(path)
        x, beside = store[:], {name: store.column(name)[:] for name in store.columns}
        store.append(x, **beside)
        waits = [in_child(lambda: [store.append(x, **beside) for _ in range(3)]) for _ in range(3)]
        for _ in range(3):
            store.append(x, **beside)
        for wait in waits:
            wait()
        newest = ss.open(path)
        assert newest.shape[0] == 100 * 14, newest.shape
        assert newest.verify() == []
        """,
        path,
    )


def test_a_lock_is_free_in_the_child_unless_its_owner_forked() -> None:
    lock, taken, done = forking.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock():
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    mine = forking.Lock()
    with mine():
        child = os.fork()
        if not child:
            signal.alarm(20)
            with lock(), mine():
                pass
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()


def test_no_thread_imports_anything_that_a_fork_could_cut_in_half(store: Path) -> None:
    passes(
        """
        from sparsestore import forking

        unguarded = []

        def hook(event, arguments):
            if event == "import" and arguments[0] not in sys.modules and not forking.undivided._is_owned():
                unguarded.append(arguments[0])

        def reads():
            store = ss.open(path)
            store[:5], store.column("name")[:3], store.select(features=[1])[:3], store.split(0.5), store.plan(32)
            for layout in ("sparse", "dense"):
                loader = store.loader(128, shuffle=True, columns=("y", "name"), layout=layout)
                list(loader), loader.state_dict()
            assert store.verify() == []

        sys.addaudithook(hook)
        thread = threading.Thread(target=reads)
        thread.start()
        thread.join()
        assert unguarded == [], unguarded
        """,
        store,
    )


@pytest.mark.slow
def test_the_check_for_hanging_children_can_fail(store: Path) -> None:
    """With locks as threading has them, a child of a process that holds one hangs, and the alarm ends it."""
    done = script(
        """
        from sparsestore import forking
        forking.Lock._renew = lambda lock: None
        store = ss.open(path)
        taken, done = threading.Event(), threading.Event()
        def hold():
            with store._reader._lock():
                taken.set(); done.wait()
        threading.Thread(target=hold, daemon=True).start()
        taken.wait()
        in_child(lambda: store[0], limit_s=2)()
        """,
        store,
    )
    assert "Timeout" in done.stderr


# ------------------------------------------------------------------------------------------------ interrupts


def test_an_interrupt_at_any_time_of_an_epoch_leaves_no_thread_and_a_loader_that_goes_on(store: Path) -> None:
    passes(
        """
        import random, warnings
        warnings.simplefilter("ignore", ResourceWarning)  # of a file that was just opened: it is closed all the same
        signal.signal(signal.SIGALRM, signal.default_int_handler)

        def untold(what):  # one of 3,000 comes while Python forgets a thread, in a callback of its own that swallows it
            if what.exc_type is not KeyboardInterrupt or getattr(what.object, "__module__", "") != "_weakrefset":
                sys.__unraisablehook__(what)

        sys.unraisablehook = untold
        rng = random.Random(0)
        store = ss.open(path)
        whole = epoch(store, 16)
        assert store.verify() == []  # extension modules have been imported: Cython's swallow what interrupts that
        loaders = [store.loader(16, shuffle=True, seed=5, layout=layout) for layout in ("sparse", "dense")]
        for number in range(120):
            loader, interrupted = loaders[number % 2], False
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 0.03), 5)  # again where it is swallowed
                while True:
                    if number % 3:
                        for batch in loader:
                            pass
                    else:
                        assert (found := store.verify()) == [], found
                        ss.open(path)[::3]
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted = True
            assert interrupted
            # one that was interrupted in the call that starts it is not joined, and ends at once
            until = time.monotonic() + 2
            while any(thread.ident is None for thread in threading.enumerate()) and time.monotonic() < until:
                time.sleep(0.001)
            assert len(threading.enumerate()) == 1, threading.enumerate()
            state = loader.state_dict()
            loader.load_state_dict({**state, "epoch": 0, "batch": 3})
            assert np.array_equal(np.concatenate([batch.row_ids for batch in loader]), whole[48:])
        assert np.array_equal(epoch(store, 16), whole)
        """,
        store,
    )


@pytest.mark.slow
def test_an_interrupt_of_fit_leaves_a_dataset_that_can_be_fitted_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    ss.convert(matrix(), tmp_path / "s.zarr", columns=columns())
    done = script(
        """
        import keras
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        store = ss.open(path)
        ds = store.to_tf(32, layout="dense", shuffle=True, seed=0)
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(ds, verbose=0)
        for seconds in (0.02, 0.2):
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                model.fit(ds, epochs=1000, verbose=0)
            except KeyboardInterrupt:
                model.fit(ds, verbose=0)
            else:
                raise AssertionError("not interrupted")
        assert sum(len(y) for _, y in ds) == len(store)
        print("fitted")
        """,
        tmp_path / "s.zarr",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fitted\n")
    assert "Exception ignored" not in done.stderr


@pytest.fixture(scope="module")
def many_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose verification takes most of a second."""
    x = sp.eye_array(10, 50, format="csr")
    store = ss.convert(x, tmp_path_factory.mktemp("hygiene") / "many.zarr", progress=False)
    for _ in range(200):
        store.append(x)
    return Path(store.path)


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["SIGINT", "SIGTERM"],
)
@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_command_ends_with_one_line_and_the_status_of_its_signal(
    tmp_path: Path, many_objects: Path, command: str, number: int, status: int, word: str
) -> None:
    if command == "convert":
        x = sp.random_array((200_000, 50), density=0.4, rng=np.random.default_rng(0), format="csr", dtype=np.float32)
        source, path = tmp_path / "x.npz", tmp_path / "s.zarr"
        sp.save_npz(source, x, compressed=False)
        arguments, left = [str(source), str(path)], [source]
    else:
        path = many_objects
        arguments, left = [str(path), "--deep"], []
    inside = False
    for _ in range(10):  # this process may be let wait for longer than the command takes
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsestore", command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        with process:
            # well inside the command: looked for while it stands still, or it may have ended by the time of the signal
            process.send_signal(signal.SIGSTOP)
            while (
                not (path.exists() if command == "convert" else has_open(process.pid, path)) and process.poll() is None
            ):
                process.send_signal(signal.SIGCONT)
                time.sleep(0.002)
                process.send_signal(signal.SIGSTOP)
            inside = process.poll() is None and (command == "verify" or not any(path.glob("versions/*")))
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            out, error = process.communicate(timeout=60)
        if inside:
            break
        if command == "convert":
            shutil.rmtree(path)
    assert inside
    assert (process.returncode, out, error) == (status, "", f"error: {word}\n")
    assert list(tmp_path.iterdir()) == left


def has_open(process: int, folder: Path) -> bool:
    """Whether a process has an object of a store open."""
    found = []
    for link in Path(f"/proc/{process}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(link.readlink())
    return any(path.is_relative_to(folder / "segments") for path in found)


def test_a_signal_that_is_ignored_stays_ignored(store: Path) -> None:
    """As nohup, and a shell that runs a command in the background, want it."""
    command = [sys.executable, "-m", "sparsestore", "verify", "--deep", str(store)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    with process:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert process.communicate()[0].startswith(f"{store}: sound (every byte")
    assert process.returncode == 0


# ------------------------------------------------------------------------------------------------ what runs out


def test_reading_writes_nothing(store: Path) -> None:
    """Full disks and read-only file systems are no matter: nothing is opened for writing, made, locked or removed."""
    out = passes(
        """
        import shutil
        import sparsestore.cli
        other = ss.open(shutil.copytree(path, path + ".other"))
        reads(other), epoch(other), other.verify()  # compiled loops are kept on disk by the first who needs them
        changed = []
        changes = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.rmdir", "os.truncate", "os.utime",
                   "os.chmod", "fcntl.flock", "fcntl.lockf", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp")

        def hook(event, arguments):
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or event in changes:
                changed.append((event, *arguments))

        sys.addaudithook(hook)
        for options in ({}, {"mmap": False}, {"check": "always"}):
            store = ss.open(path, **options)
            reads(store)
            assert store.verify() == [] == store.verify(deep=False)
        for command in (["info"], ["plan"], ["head"], ["verify"]):
            sys.argv = ["sparsestore", *command, path]
            try:
                sparsestore.cli.main()
            except SystemExit as stop:
                assert not stop.code, stop
        assert changed == [], changed
        """,
        store,
    )
    assert f"{store}: sound" in out


@pytest.mark.parametrize("store", ["raw"], indirect=True)
def test_a_tensorflow_dataset_writes_nothing_to_a_store_that_can_not_be_written(store: Path) -> None:
    pytest.importorskip("tensorflow")
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of its own")
    script = f"""
import numpy as np, sparsestore as ss
store = ss.open("{store}")
assert sum(len(y) for _, y in store.to_tf(64, shuffle=True, layout="dense")) == {N}
try:
    store.append(store[:1], y=[0], name=["x"])
except OSError as error:
    print("read-only", error.errno)
"""
    mount = f"mount --bind {store} {store} && mount -o remount,bind,ro {store} && exec {sys.executable} -c '{script}'"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "read-only 30\n"


@pytest.mark.parametrize("options", [{}, {"NUMBA_OPT": "1"}], ids=["images", "numba"])
@pytest.mark.slow
def test_machine_code_that_can_not_be_kept_is_used_all_the_same(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "s.zarr"
    ss.convert(matrix(100), path, columns=columns(100))
    assert passes("epoch(ss.open(path)); print('read')", path, NUMBA_CACHE_DIR="/dev/null/x", **options) == "read\n"


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.slow
def test_with_little_memory_reading_works_or_says_so_and_goes_on_after_it(store: Path, warm: bool) -> None:
    """Twenty limits of address space; warm: compiled loops are loaded and threads have had stacks before."""
    passes("reads(ss.open(path))", store)  # compiled loops are on disk
    done = script(
        """
        def limit(n_bytes):
            resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.RLIM_INFINITY))

        import numpy.ma, numpy.random, numcodecs.blosc, numcodecs.vlen, pathlib, scipy.sparse, zstandard
        if sys.argv[2] == "True":
            reads(ss.open(path))
        size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        found = []

        def tries(level):
            store = ss.open(path)
            loader = store.loader(64, shuffle=True, seed=5)
            try:
                limit(size + level)
                try:
                    for batch in loader:
                        assert right(batch.x, batch.row_ids, batch.y)
                    reads(ss.open(path))
                    reads(store)
                    worked = True
                except MemoryError:
                    worked = False
                except SystemError as error:  # where numpy has no memory for the exception, it forgets to set one
                    assert "without exception set" in str(error), error
                    worked = False
            finally:
                limit(resource.RLIM_INFINITY)
            for batch in loader:
                assert right(batch.x, batch.row_ids, batch.y)
            reads(store)
            assert store.verify() == []
            os._exit(0 if worked else 3)

        warm = sys.argv[2] == "True"
        for level in range(20):
            child = os.fork()
            if not child:
                faulthandler.dump_traceback_later(30, exit=True)
                try:
                    # from half a MiB less than there is to far more than is needed
                    tries((level - 2 << 18) * (1 if warm else 10) if level < 19 else 1 << 30)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(*found)
        """,
        store,
        warm,
    )
    assert done.returncode == 0, done.stderr
    # of a thread that has no memory to begin the interpreter tells by itself
    ignored = r"Exception ignored in thread started by: .*\nMemoryError: \n"
    assert re.sub(ignored, "", done.stderr) == ""
    found = done.stdout.split()
    assert set(found) <= {"0", "3"}, found  # it works, or it is told
    assert found[-1] == "0"
    assert warm or "3" in found


@pytest.mark.slow
def test_few_descriptors_suffice_for_many_stores_and_segments(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    x, beside = matrix(), columns()
    ss.create(path, n_features=M, columns={"y": "int64", "name": "string"}).publish()
    for start in range(0, N, 100):
        part = slice(start, start + 100)
        ss.open(path).append(x[part], **{name: values[part] for name, values in beside.items()})
    passes(
        """
        used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
        stores = [ss.open(path, mmap=number % 3 > 0) for number in range(200)]
        for store in stores[::8]:
            rows = np.sort(np.concatenate([batch.row_ids for batch in store.loader(1024, shuffle=True)]))
            assert np.array_equal(rows, np.arange(len(store)))
            assert store.column("name")[1234] == "row 1234"
        """,
        path,
    )


def test_no_descriptor_left_is_an_error_that_names_file_and_limit(store: Path) -> None:
    passes(
        """
        epoch(ss.open(path))
        store, unmapped = ss.open(path), ss.open(path, mmap=False)
        unmapped[:5]
        used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        try:
            store[:5]
        except OSError as error:
            text = str(error)
            assert not isinstance(error, ss.CorruptStoreError) and error.errno == 24, repr(error)
            assert "segments/" in text and f"{used + 8} open (ulimit -n)" in text, text
        else:
            raise AssertionError("read without a descriptor")
        for call in (lambda: ss.open(path), lambda: ss.open(path, mmap=False), lambda: unmapped[2000:2005]):
            try:
                call()
            except OSError as error:
                text = str(error)
                assert not isinstance(error, ss.CorruptStoreError) and error.errno == 24, repr(error)
                assert text.count(path) == 1 and text.count("open (ulimit -n)") == 1, text
            else:
                raise AssertionError("read without a descriptor")
        for descriptor in taken:
            os.close(descriptor)
        epoch(store)
        """,
        store,
    )


# ------------------------------------------------------------------------------------------------ files that go


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    shutil.copytree(store, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def test_a_store_removed_while_it_is_mapped_is_read_on(copy: Path) -> None:
    with ss.open(copy) as touched, ss.open(copy) as untouched:
        loader = touched.loader(100, shuffle=True, seed=0)
        before = [batch.x.toarray() for batch in loader]
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batch": 0})
        rows, names = touched[:], touched.column("y")[:]
        shutil.rmtree(copy)
        again = [batch.x.toarray() for batch in loader]
        assert all(map(np.array_equal, before, again))
        assert (touched[::3] != rows[::3]).nnz == 0
        assert np.array_equal(touched.column("y")[:], names)
        with pytest.raises(ss.CorruptStoreError, match="the object is missing, and so are all versions: the store was"):
            untouched[:5]


def test_files_replaced_by_other_ones_are_told_or_not_seen(copy: Path) -> None:
    with ss.open(copy) as touched, ss.open(copy) as untouched:
        rows = touched[:]
        for path in copy.glob("segments/*/X/indices/c/0"):
            content = bytearray(path.read_bytes())
            content[len(content) // 3] ^= 1
            path.with_name("new").write_bytes(content)
            path.with_name("new").replace(path)
        assert (touched[:] != rows).nnz == 0
        with pytest.raises(ss.CorruptStoreError, match="do not match their crc32c"):
            untouched[:]


@pytest.mark.parametrize("store", ["raw"], indirect=True)
def test_a_file_cut_short_while_it_is_mapped_ends_the_process_and_without_maps_is_an_error(copy: Path) -> None:
    text = """
    store = ss.open(path, mmap={mmap})
    store[:3]
    for name in sorted(os.listdir(f"{{path}}/segments")):
        os.truncate(f"{{path}}/segments/{{name}}/X/indices/c/0", 0)
    try:
        store[1500:1600]
    except ss.CorruptStoreError as error:
        print("cut short" in str(error) or "expected" in str(error))
    """
    shutil.copytree(copy, copy.with_name("other"))
    assert passes(text.format(mmap=False), copy) == "True\n"
    mapped = text.format(mmap=True).replace("store[:3]", "store[:]")
    assert script(mapped, copy.with_name("other")).returncode == -signal.SIGBUS


def test_a_reader_that_is_open_across_appends_and_gc_keeps_what_it_has_touched(copy: Path) -> None:
    def one(value: int) -> dict[str, Any]:
        return {"y": [value], "name": ["new"]}

    opened, untouched = ss.open(copy), ss.open(copy)
    state = opened.loader(100, shuffle=True, seed=0).state_dict()
    rows = opened[:]
    batches = iter(opened.loader(100, shuffle=True, seed=0))
    first = next(batches)
    newest = ss.convert(matrix(10), copy, columns=columns(10), overwrite=True).append(matrix(1), **one(5))
    assert newest.gc(older_than=0)
    assert newest.versions == [5]
    assert (opened[:] != rows).nnz == 0
    found = [first, *batches]
    assert sum(len(batch.row_ids) for batch in found) == N
    assert all((batch.x != rows[batch.row_ids]).nnz == 0 for batch in found)
    with pytest.raises(ss.CorruptStoreError, match=r"so is version 3: gc removed it .* is 5; gc\(keep"):
        untouched[5]
    with pytest.raises(ValueError, match=r"version is 3, here 5.* Version 3 is not there any more: gc keeps as many"):
        newest.loader(100, shuffle=True, seed=0).load_state_dict(state)
    older = newest.append(matrix(1), **one(6)).loader(1, seed=0, shuffle=True).state_dict()
    with pytest.raises(ValueError, match=r"version is 6, here 5.* Open the store with version=6 to go on from it"):
        newest.loader(1, shuffle=True, seed=0).load_state_dict(older)


def test_each_version_that_a_reader_opens_while_others_append_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    ss.convert(matrix(20), path, columns=columns(20))
    text = """
    store = ss.open(path)
    x, beside = store[:20], {name: store.column(name)[:20] for name in store.columns}
    for _ in range(15):
        store = store.append(x, **beside)
        assert store.verify(deep=False) == []
    """
    writers = [threading.Thread(target=lambda: outcomes.append(passes(text, path))) for _ in range(2)]
    outcomes: list[str] = []
    for thread in writers:
        thread.start()
    seen = [1]
    while any(thread.is_alive() for thread in writers):
        with ss.open(path) as store:
            assert store.shape == (20 * store.version, M)
            assert (store[20 * store.version - 20 :] != matrix(20)).nnz == 0
            assert store.version >= seen[-1]
            seen.append(store.version)
    for thread in writers:
        thread.join()
    assert len(outcomes) == 2
    assert ss.open(path).version == 31
    assert len(set(seen)) > 2


# ------------------------------------------------------------------------------------------------ a disk that is full


@pytest.mark.parametrize("how", ["in order", "shuffled", "append"])
def test_on_a_full_disk_nothing_is_published_and_room_makes_it_go_on(tmp_path: Path, how: str) -> None:
    """A real file system of 3 MiB; the bucket files of a shuffle fill it too."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of its own")
    text = """
        import scipy.sparse as sp

        how = sys.argv[2]
        x = sp.random_array((100_000, 64), density=0.5, rng=np.random.default_rng(0), format="csr", dtype=np.float32)
        small = ss.convert(x[:100], f"{path}/s.zarr", columns={"y": np.arange(100)}, progress=False)
        options = {"shuffle": True, "seed": 0, "max_bytes": "24MiB"} if how == "shuffled" else {}

        def work(rows):
            y = {"y": np.arange(rows)}
            if how == "append":
                return small.append(x[:rows], **y)
            return ss.convert(x[:rows], f"{path}/s.zarr", columns=y, overwrite=True, progress=False, **options)

        try:
            work(100_000)
        except (OSError, MemoryError) as error:
            text = str(error)
            assert "space left" in text or "bytes free" in text, text
            assert path in text, text
        else:
            raise AssertionError("it fitted")
        with ss.open(f"{path}/s.zarr") as store:
            assert store.version == 1 and store.verify() == [] and (store[:] != x[:100]).nnz == 0
            store.gc(older_than=0)
        names = sorted(os.listdir(f"{path}/s.zarr"))
        assert os.listdir(f"{path}/s.zarr/segments") == [small._reader.lines[0].id], names
        found = work(1000)
        assert found.version == 2 and found.shape[0] == (1100 if how == "append" else 1000) and found.verify() == []
        print("went on")
    """
    code = COMMON + textwrap.dedent(text)
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    (tmp_path / "disk").mkdir()
    disk = tmp_path / "disk"
    mount = f"mount -t tmpfs -o size=3m none {disk} && exec {sys.executable} {tmp_path}/code.py {disk} '{how}'"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
