"""Objects of a folder: made once, never through a link, locked by the living, mapped end to end."""

from __future__ import annotations

import errno
import gzip
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trust.interrupts import interrupted, places_of_a_second

from sparsestore.buffers import Buffers
from sparsestore.checksum import crc32c, piece_crc32c
from sparsestore.errors import CorruptStoreError
from sparsestore.storage import (
    LARGE_PAGE,
    Advice,
    Held,
    LocalStorage,
    ObjectWriter,
    _read_at_once,
    naming,
    open_storage,
    scratch_folder,
)

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


# ----------------------------------------------------------------------------------------------------- addresses


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert open_storage((tmp_path / "a b").as_uri()).root == tmp_path / "a b"


def test_a_store_stays_open_when_the_process_changes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("store")
    storage.put("a", b"x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert storage.read("a") == b"x"
    assert storage.name == "store"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file://store.zarr", "file://store.zarr: names the machine 'store.zarr', expected file:/// and an absolute"),
        ("", "the path of the store is empty"),
        ("file:///data/run#2.zarr", r"file:///data/run#2\.zarr: the path of a URL ends at '#': write %23 where it"),
        ("file:///data/run?.zarr", r"file:///data/run\?\.zarr: the path of a URL ends at '\?': write %3F where it"),
    ],
)
def test_a_path_that_would_be_another_by_mistake_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_storage(path)


def test_another_scheme_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"s3://bucket/x: scheme 's3' is not supported, expected a path or a file:// URL"
    ):
        open_storage("s3://bucket/x")


def test_an_error_gets_the_name_that_it_lacks_and_stays_of_its_kind() -> None:
    for error, message in (
        (FileNotFoundError("gone"), "a.svm: gone"),
        (FileNotFoundError("a.svm: gone"), "a.svm: gone"),
        (gzip.BadGzipFile("no gzip"), "a.svm: no gzip"),
    ):
        with pytest.raises(type(error), match=f"^{re.escape(message)}$"), naming("a.svm"):
            raise error


# ------------------------------------------------------------------------------------------------ create, publish


def test_an_object_is_made_once(storage: LocalStorage) -> None:
    storage.put("a/b", b"one")
    with pytest.raises(FileExistsError):
        storage.put("a/b", b"two")
    assert storage.read("a/b") == b"one"


def test_a_writer_tells_length_and_checksum(storage: LocalStorage) -> None:
    written = storage.put("a", b"123456789")
    assert (written.length, written.crc32c) == (9, 0xE3069283)
    assert storage.crc32c("a") == 0xE3069283


@pytest.mark.parametrize("sizes", [[3 * LARGE_PAGE + 5], [1000] * 5000, [LARGE_PAGE - 1, 2, 3 * LARGE_PAGE], [7], []])
def test_large_pages_are_written_whole(
    storage: LocalStorage, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the page cache holds them in small ones, and every reader of the file pays for it."""
    payload = np.random.default_rng(0).integers(0, 256, sum(sizes), np.uint8).tobytes()
    writer, at, calls = storage.create("a"), 0, []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: calls.append(len(view)) or write(descriptor, view))
    for size in sizes:
        writer.write(payload[at : at + size])
        at += size
    writer.close()
    assert all(size % LARGE_PAGE == 0 for size in calls[:-1])
    assert (storage.read("a"), writer.length, writer.crc32c) == (payload, len(payload), crc32c(payload))


def test_of_many_threads_that_publish_one_name_one_wins(storage: LocalStorage) -> None:
    barrier, won = threading.Barrier(8), []

    def publish(number: int) -> None:
        barrier.wait()
        try:
            storage.publish("versions/1.json", f"{number}".encode() * 10_000, f"writers/{number}.tmp")
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("versions/1.json") == f"{won[0]}".encode() * 10_000
    assert storage.list("versions") == ["1.json"]
    assert storage.list("writers") == []  # no temporary name stays


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_there_are_no_links_one_of_two_wins_by_renaming(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    storage.publish("versions/1.json", b"first", "writers/a.tmp")
    with pytest.raises(FileExistsError):
        storage.publish("versions/1.json", b"second", "writers/b.tmp")
    assert storage.read("versions/1.json") == b"first"
    assert storage.list("writers") == []


def test_a_link_whose_answer_was_lost_is_one(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def linked_but_told_otherwise(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise FileExistsError(errno.EEXIST, "a network file system asked twice")

    monkeypatch.setattr(os, "link", linked_but_told_otherwise)
    storage.publish("versions/1.json", b"first", "writers/a.tmp")
    assert storage.read("versions/1.json") == b"first"


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a//x", "a/./x", "..", "a/\0"])
def test_no_key_leads_out_of_the_store(storage: LocalStorage, key: str) -> None:
    for call in (storage.read, storage.create, storage.remove, storage.length, storage.list, storage.path):
        with pytest.raises(ValueError, match="leaves the store, expected plain names"):
            call(key)


def test_no_link_in_the_middle_of_a_key_is_followed(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else/x").write_bytes(b"secret")
    storage.put("a/b", b"1")
    (storage.root / "a/link").symlink_to(tmp_path / "else")
    for call in (storage.read, storage.length, storage.create, storage.remove, storage.crc32c, storage.exists):
        with pytest.raises(CorruptStoreError, match="a/link is a link or a file, expected a folder"):
            call("a/link/x")
    with pytest.raises(CorruptStoreError, match="a/link is a link or a file"):
        storage.list("a/link")
    assert (tmp_path / "else/x").read_bytes() == b"secret"
    storage.remove("a/link")  # itself, not what it leads to
    assert (tmp_path / "else/x").read_bytes() == b"secret"


def test_lengths_are_those_of_plain_files_alone(storage: LocalStorage) -> None:
    for key in ("a", "b/c", "b/d/e", "b/d/f"):
        storage.put(key, key.encode() * 10)
    (storage.root / "b/link").symlink_to(storage.root / "a")
    (storage.root / "d").symlink_to(storage.root / "b")
    keys = ["b/d/f", "a", "b/c", "b/d/e", "b/link", "b/d", "none", "none/x", "a/x", "d/c"]
    assert storage.lengths(keys) == {"a": 10, "b/c": 30, "b/d/e": 50, "b/d/f": 50}
    with pytest.raises(ValueError, match="leaves the store"):
        storage.lengths(["../x"])


def test_the_store_itself_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    LocalStorage(tmp_path / "link").put("a/b", b"1")
    assert LocalStorage(tmp_path / "link").read("a/b") == (tmp_path / "real/a/b").read_bytes() == b"1"


def test_too_few_file_handles_are_no_damage(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("a", b"1")
    real = os.open

    def limited(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith("a"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", limited)
    with pytest.raises(OSError, match="Too many open files") as raised:
        storage.read("a")
    assert not isinstance(raised.value, CorruptStoreError)


@pytest.mark.parametrize("n", [0, 1, 3 << 14, (3 << 14) + 5, LARGE_PAGE + (1 << 14)])
def test_a_writer_need_not_look_at_pieces_whose_checksums_are_known(storage: LocalStorage, n: int) -> None:
    payload = np.random.default_rng(0).integers(0, 256, n, np.uint8)
    writer = storage.create("x")
    writer.write(b"head")
    writer.write(payload, piece_crc32c(payload))
    writer.write(b"tail")
    writer.close()
    whole = b"head" + payload.tobytes() + b"tail"
    assert storage.read("x") == whole
    assert (writer.length, writer.crc32c) == (len(whole), crc32c(whole))


# ------------------------------------------------------------------------------------------------ what is durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was made durable, in order."""
    names: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_objects_are_made_durable_together_and_before_their_names(storage: LocalStorage, synced: list[str]) -> None:
    for name in "abc":
        storage.put(f"folder/{name}", b"x")
    assert synced == []
    storage.sync()
    assert synced == ["a", "b", "c", "folder", "store", storage.root.parent.name]
    storage.sync()
    assert len(synced) == 6


def test_what_is_published_is_durable_before_it_has_its_name(storage: LocalStorage, synced: list[str]) -> None:
    link, before = os.link, list[list[str]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", lambda *names, **options: (before.append([*synced]), link(*names, **options)))
        storage.publish("versions/1", b"x", "writers/temporary")
    assert before == [["temporary"]]


def test_of_many_objects_the_oldest_do_not_stay_open(
    storage: LocalStorage, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsestore.storage._most_whole", lambda: 2)
    for name in "abcd":
        storage.put(name, b"x")
    assert synced == ["a", "b"]
    monkeypatch.setattr("sparsestore.storage._MOST_WHOLE_BYTES", 10)
    storage.put("e", bytes(20))
    assert synced == ["a", "b", "c", "d", "e"]


def test_objects_that_wait_give_way_where_no_more_files_can_be_opened(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuses(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT and storage._whole:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuses)
    for name in "abc":
        storage.put(name, b"x")
    assert storage.list("") == ["a", "b", "c"]


def test_an_object_that_can_not_be_made_durable_is_named_when_all_are(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fails(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    for name in "abc":
        storage.put(name, b"x")
    for _ in range(2):  # fsync(2) tells of it once; a second try may not take it for durable
        with pytest.raises(OSError, match=r"Input/output error: '.*/store/b'"):
            storage.sync()
        monkeypatch.setattr(os, "fsync", real)


@pytest.mark.parametrize("how", ["discarded", "forgotten"])
def test_what_is_dropped_holds_no_file_open(storage: LocalStorage, how: str) -> None:
    def n_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = n_open()
    for name in "abc":
        storage.put(name, b"x")
    writer = storage.create("d")
    assert n_open() == before + 4
    if how == "discarded":
        storage.discard()
        writer.discard()
    else:
        storage._whole.clear()
        del writer
    assert n_open() == before


def test_sync_takes_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("store")
    storage.put("segments/a/X/c/0", b"x")
    storage.sync()
    assert (tmp_path / "store/segments/a/X/c/0").read_bytes() == b"x"


def test_sync_reaches_every_folder_that_has_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also above the store, and those that another writer made, whose names may not be durable either."""
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink())), real(descriptor)),
    )
    (tmp_path / "store").mkdir()
    LocalStorage(tmp_path / "store").put("segments/other", b"x")
    for root, expected in (
        (tmp_path / "store", ["store/segments/a/b", "store/segments/a", "store/segments", "store", "."]),
        (
            tmp_path / "new/deep/store",
            [
                *("new/deep/store/segments/a/b", "new/deep/store/segments/a", "new/deep/store/segments"),
                *("new/deep/store", "new/deep", "new", "."),
            ],
        ),
    ):
        storage = LocalStorage(root)
        storage.put("segments/a/b", b"x")
        synced.clear()
        storage.sync()
        assert {str(tmp_path / name) for name in expected} == set(synced)
        assert synced.index(str(root / "segments/a")) < synced.index(str(root / "segments")) < synced.index(str(root))
        synced.clear()
        storage.sync()
        assert synced == []


def test_remove_counts_bytes_and_forgives_absence(storage: LocalStorage) -> None:
    storage.put("a/b/c", b"12345")
    storage.put("a/d", b"123")
    assert storage.remove("a") == 8
    assert storage.remove("a") == 0
    assert storage.list("a") == []


# --------------------------------------------------------------------------------------- what is no plain object


def test_a_symbolic_link_is_not_followed(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    storage.root.mkdir()
    (storage.root / "x").symlink_to(tmp_path / "secret")
    for read in (storage.read, storage.length, storage.crc32c, lambda key: storage.map([(key, 6)])):
        with pytest.raises(CorruptStoreError, match=r"x is a symbolic link|x is no plain file"):
            read("x")


def test_a_folder_is_no_object(storage: LocalStorage) -> None:
    (storage.root / "x").mkdir(parents=True)
    for read in (storage.read, storage.length, storage.crc32c, lambda key: storage.read_range(key, 0, 1)):
        with pytest.raises(CorruptStoreError, match="x is no plain file"):
            read("x")


def test_a_pipe_is_refused_and_not_waited_for(storage: LocalStorage) -> None:
    storage.root.mkdir()
    os.mkfifo(storage.root / "x")
    for read in (storage.read, storage.length, storage.crc32c, lambda key: storage.map([(key, 6)])):
        with pytest.raises(CorruptStoreError, match="x is no plain file"):
            read("x")


def test_an_absent_object_is_file_not_found(storage: LocalStorage) -> None:
    for read in (storage.read, storage.length, storage.crc32c, lambda key: storage.map([(key, 6)])):
        with pytest.raises(FileNotFoundError):
            read("x")


@pytest.mark.parametrize("direct", [True, False])
def test_parts_of_an_object_are_read_into_arrays(
    storage: LocalStorage, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around the page cache where they lie as that needs, by way of it where they do not."""
    if not direct:
        monkeypatch.setattr("sparsestore.storage._set_direct", lambda *_: False)
    stored = np.random.default_rng(0).integers(0, 256, 300_001, np.uint8)
    storage.put("a", stored.tobytes())
    outs = [Buffers().empty(1 << 18, np.uint8)[:n] for n in (8192, 5, 4096, 1)]
    places = [4096, 17, 0, 300_000]
    storage.read_into("a", list(zip(places, outs, strict=True)), direct=True)
    for at, out in zip(places, outs, strict=True):
        assert out.tobytes() == stored[at : at + len(out)].tobytes()
    with pytest.raises(CorruptStoreError, match="a ends at byte 300001, expected 9 more: it was cut short"):
        storage.read_into("a", [(299_990, np.empty(20, np.uint8))])


def test_a_short_object_is_told_with_its_bytes(storage: LocalStorage) -> None:
    storage.put("x", b"12345")
    assert storage.read_range("x", 1, 3) == b"23"
    with pytest.raises(CorruptStoreError, match="x ends at byte 5, expected bytes 3 to 9: it was cut short"):
        storage.read_range("x", 3, 9)
    with pytest.raises(CorruptStoreError, match="x has 5 bytes, expected at least 6"):
        storage.map([("x", 6)])


# ---------------------------------------------------------------------------------------------------------- locks


def is_held(storage: LocalStorage, key: str) -> bool:
    held = storage.hold(key)
    if held is not None:
        held.release()
    return held is None


def test_what_is_held_nobody_else_gets_before_it_is_released(storage: LocalStorage) -> None:
    first = storage.hold("writers/a", make=True)
    assert first is not None
    assert is_held(storage, "writers/a")
    first.write(b"abcdef", 0)
    first.write(b"XY", 2)
    assert first.read() == b"abXY"  # a write ends the object: what stood behind was cut short by a crash
    first.release()
    assert not is_held(storage, "writers/a")
    with pytest.raises(FileNotFoundError):
        storage.hold("writers/b")


def test_what_was_removed_before_it_was_held_is_not_there(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.flock

    def removed_just_before(descriptor: int, operation: int) -> None:
        (storage.root / "writers/a").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    with pytest.raises(FileNotFoundError):
        storage.hold("writers/a", make=True)


def test_a_hold_goes_with_its_process_however_that_ends(storage: LocalStorage) -> None:
    storage.root.mkdir()
    program = (
        "import sys, time; from sparsestore.storage import open_storage\n"
        "held = open_storage(sys.argv[1]).hold('writers/a', make=True)\nprint('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, storage.name], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_held(storage, "writers/a")
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_held(storage, "writers/a"):
        assert time.monotonic() < deadline


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="hears signals where CPython does")
def test_an_interrupt_is_heard_wherever_it_comes_while_a_folder_is_removed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("interrupted") / "scratch"

    def work() -> None:
        with scratch_folder(folder):
            pass

    def filled() -> None:
        (folder / "a" / "b").mkdir(parents=True, exist_ok=True)
        (folder / "a" / "b" / "c").touch()

    filled()
    heard = places_of_a_second(work, filled)
    assert len(heard) > 20
    for place in heard:
        filled()
        assert interrupted(work, place) == (True, False), place


@pytest.mark.parametrize("kind", [Held, ObjectWriter])
def test_what_an_interrupt_left_half_made_goes_in_silence(kind: Any) -> None:
    kind.__new__(kind).__del__()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="hears signals where CPython does")
def test_an_interrupt_anywhere_in_a_hold_lets_go_of_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("interrupted"))  # where descriptors may stay open
    storage = open_storage(folder)
    held: list[Any] = [storage.hold("writers/a", make=True)]

    def work() -> None:
        held[0] = storage.hold("writers/a")

    def undone() -> None:
        held[0].release()
        held[0] = None

    undone()
    heard = places_of_a_second(work, undone)
    assert len(heard) > 20
    for place in heard:
        assert interrupted(work, place) == (True, False), place
        assert not is_held(storage, "writers/a"), place


def test_a_hold_goes_with_its_last_reference_but_not_with_that_of_a_fork(storage: LocalStorage) -> None:
    held = storage.hold("writers/a", make=True)
    assert held is not None
    child = os.fork()
    if not child:
        del held
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert is_held(storage, "writers/a")
    descriptor = held.descriptor
    del held
    assert not is_held(storage, "writers/a")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_turns_come_one_after_the_other_but_nobody_waits_for_ever(storage: LocalStorage) -> None:
    storage.make_folder("versions")
    inside, most = [], []

    def work() -> None:
        for _ in range(5):
            with storage.turn("versions", 60):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    with storage.turn("versions", 60):
        start = time.monotonic()
        with storage.turn("versions", 0.05):  # safety rests on link(2), not on this
            assert time.monotonic() - start >= 0.05


def test_where_there_are_no_locks_nothing_is_held(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    held = storage.hold("writers/a", make=True)
    assert held is not None
    held.release()
    storage.make_folder("versions")
    with storage.turn("versions", 60):
        assert not is_held(storage, "writers/a")


# ----------------------------------------------------------------------------------------------------------- maps


def test_several_objects_map_end_to_end(storage: LocalStorage) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, n, np.uint8) for n in (2 * PAGE, PAGE, PAGE + 5)]
    for i, part in enumerate(parts):
        storage.put(f"{i}", part.tobytes() + b"index of the shard")
    mapped = storage.map([(f"{i}", len(part)) for i, part in enumerate(parts)])
    assert mapped.tobytes() == np.concatenate(parts).tobytes()


@pytest.mark.skipif(sys.platform == "win32", reason="there the system chooses")
def test_maps_begin_where_large_pages_do(storage: LocalStorage) -> None:
    storage.put("a", bytes(LARGE_PAGE + 1))
    maps = [storage.map([("a", length)]) for length in (LARGE_PAGE, LARGE_PAGE + 1)]
    assert [found.__array_interface__["data"][0] % LARGE_PAGE for found in maps] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_no_more_is_asked_for_at_once_than_the_system_reads(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a longer request it would forget the rest."""
    storage.put("a", bytes(3 << 20))
    mapped = storage.map([("a", 3 << 20)])
    asked: list[tuple[int, int]] = []
    base = mapped.__array_interface__["data"][0]

    class Libc:
        @staticmethod
        def madvise(address: int, length: int, advice: int) -> None:
            assert advice == Advice.SOON
            asked.append((address - base, length))

    monkeypatch.setattr("sparsestore.storage._libc", Libc)
    monkeypatch.setattr("sparsestore.storage._read_at_once", lambda _: 1 << 18)
    storage.advise(mapped, 5000, (1 << 20) + 1, Advice.SOON)
    assert max(length for _, length in asked) <= 1 << 18
    assert asked[0][0] == 4096
    assert all(at + length == next_at for (at, length), (next_at, _) in pairwise(asked))
    assert sum(asked[-1]) == (1 << 20) + 1


def test_what_is_read_at_once_is_what_the_disk_says_within_bounds(tmp_path: Path) -> None:
    assert 1 << 17 <= _read_at_once(tmp_path.stat().st_dev) <= 1 << 20
    assert _read_at_once(os.makedev(999, 999)) == 1 << 17  # there is none


def test_only_the_last_object_may_end_inside_a_page(storage: LocalStorage) -> None:
    with pytest.raises(ValueError, match="only the last of several mapped parts may end inside a page"):
        storage.map([("a", PAGE + 1), ("b", PAGE)])


@pytest.mark.parametrize("n", [1, 3])
def test_a_map_can_not_be_written(storage: LocalStorage, n: int) -> None:
    for i in range(n):
        storage.put(f"{i}", bytes(PAGE))
    mapped = storage.map([(f"{i}", PAGE) for i in range(n)])
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


def test_a_map_of_nothing_is_empty(storage: LocalStorage) -> None:
    assert storage.map([]).tolist() == []


@pytest.mark.parametrize("n", [1, 3])
def test_a_view_keeps_the_map_of_a_deleted_file_alive(storage: LocalStorage, n: int) -> None:
    for i in range(n):
        storage.put(f"{i}", bytes([i + 1]) * PAGE)
    view = storage.map([(f"{i}", PAGE) for i in range(n)]).view(np.uint16)[1::2]
    storage.remove("")
    assert int(view[-1]) == n * 257


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("n", [1, 3])
def test_a_map_holds_no_descriptor(storage: LocalStorage, n: int) -> None:
    # two maps a segment: a store of a thousand appends would pass the usual limit of 1,024 open files
    for i in range(n):
        storage.put(f"{i}", bytes(PAGE))
    before = len(list(Path("/proc/self/fd").iterdir()))
    maps = [storage.map([(f"{i}", PAGE) for i in range(n)]) for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(maps) == 50


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_map_goes_with_its_last_view(storage: LocalStorage) -> None:
    storage.put("x", bytes(PAGE))
    view = storage.map([("x", PAGE)])[10:20]
    assert f"{storage.root}/x" in Path("/proc/self/maps").read_text()
    del view
    assert f"{storage.root}/x" not in Path("/proc/self/maps").read_text()


def test_checksums_of_objects_longer_than_a_read(storage: LocalStorage) -> None:
    payload = np.random.default_rng(0).bytes((2 << 20) + 7)
    storage.put("x", payload)
    assert storage.crc32c("x") == crc32c(payload)
