"""Things that are done to small stores, and what must be there before and after them: for `faults` and `losses`.

A row is its number alone, so that any rows of any version can be told right from wrong.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.sparse as sp

import sparsestore as ss
from sparsestore import sort
from sparsestore.export import export
from sparsestore.features import read_document
from sparsestore.format import manifest_key
from sparsestore.maintain import gc, optimize
from sparsestore.manifest import read_manifest, segment_lines, versions
from sparsestore.storage import LocalStorage
from trust import small_store
from trust.answers import describe, strict

WIDTH = 23
STORE, SOURCE, EXPORTED = "s.zarr", "rows.svm", "out.svm"


def rows_of(numbers: Any) -> tuple[sp.csr_array, dict[str, Any]]:
    """The rows of these numbers."""
    numbers = np.asarray(numbers, np.int64)
    x = np.zeros((len(numbers), WIDTH), np.float32)
    at = np.arange(len(numbers))
    x[at, numbers % WIDTH] = numbers % 200 + 1
    x[at, (numbers + 9) % WIDTH] = 7
    x[numbers % 11 == 3] = 0
    names = np.array([f"row {number}" for number in numbers.tolist()], object)
    return sp.csr_array(x), {"y": numbers, "name": names}


def wrong_rows(store: ss.Store, start: int, stop: int) -> str:
    """What is wrong with a version that has the rows start to stop, in any order; nothing where all is right."""
    y = store.column("y")[:]
    if not np.array_equal(np.sort(y), np.arange(start, stop)):
        return f"version {store.version} has {len(y)} rows, not each of {start} to {stop} once"
    x, columns = rows_of(y)
    found = store[:]
    if found.shape != x.shape or (found != x).nnz or found.nnz != x.nnz:
        return f"the matrix of version {store.version} differs"
    if "name" in store.columns and store.column("name")[:].tolist() != columns["name"].tolist():
        return f"the column name of version {store.version} differs"
    return ""


def unnamed(root: Path) -> list[str]:
    """What is in the folder of a store, and no version needs."""
    storage = LocalStorage(root)
    named = {"zarr.json"}
    for number in versions(storage):
        manifest = read_manifest(storage, number)
        named |= {manifest_key(number), *(page.object.key for page in manifest.pages)}
        for line in segment_lines(storage, manifest):
            folder = f"segments/{line.id}"
            document = json.loads(storage.read(f"{folder}/segment.json"))
            named |= {f"{folder}/segment.json", *(f"{folder}/{entry[0]}" for entry in document["objects"])}
        if manifest.features is not None:
            prefix = manifest.features.prefix
            objects = read_document(storage, manifest.features).objects
            named |= {f"{prefix}/features.json", *(f"{prefix}/{entry.key}" for entry in objects)}
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    empty = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())}
    return sorted(there - named | empty - {"segments", "versions", "versions/pages", "features", "writers"})


@dataclass(frozen=True)
class Scene:
    """Something that is done to a store.

    Attributes
    ----------
    name : str
    begin : callable (folder)
        Makes what must be there before: `STORE` and `SOURCE` in a folder.
    work : callable (folder)
        Does it, in the same folder.
    before, after : tuple of int or None
        Version and first and last row; None before where there is no store.
    """

    name: str
    begin: Callable[[Path], None]
    work: Callable[[Path], object]
    before: tuple[int, int, int] | None
    after: tuple[int, int, int]

    def state(self, folder: Path) -> tuple[str, str]:
        """Whether a store is as "before" or "after"; what is wrong where it is neither."""
        try:
            store = ss.open(folder / STORE)
        except FileNotFoundError as error:
            return ("before", "") if self.before is None else ("", f"there is no store: {error}")
        except Exception as error:
            return "", describe(error)
        with store:
            for name, expected in (("after", self.after), ("before", self.before)):
                if expected is not None and store.version == expected[0]:
                    try:
                        return name, wrong_rows(store, *expected[1:])
                    except Exception as error:
                        return name, describe(error)
            return "", f"the newest version is {store.version}"


@dataclass(frozen=True)
class Export(Scene):
    """A store that is exported, whether something is at the destination before or not.

    `before` and `after` have the rows that are there, of no version: the store stays as it is.
    """

    def state(self, folder: Path) -> tuple[str, str]:
        """Whether the file is as "before" or "after"."""
        try:
            with ss.open(folder / STORE) as store:
                if store.version != 2 or (wrong := wrong_rows(store, 0, 40)):
                    return "", f"the store is another, version {store.version}: {wrong}"
        except Exception as error:
            return "", describe(error)
        path = folder / EXPORTED
        found = path.read_bytes() if path.exists() else None
        for name, expected in (("after", self.after), ("before", self.before)):
            if found == (None if expected is None else _svmlight(range(*expected[1:]), zero_based=True)):
                return name, ""
        return "", f"the file is neither the old nor the new one: {found!r:.200}"


# ---------------------------------------------------------------------------------------------------- what comes then


def gone_on(scene: Scene, folder: Path, state: str, turn: int) -> list[str]:
    """Go on from a store as it was left: do it again, unless it is done, and collect garbage; what is wrong then."""
    try:
        if turn % 2:  # by turns it is collected at once or gone on with
            _collect_all(folder)
            if left := unneeded(scene, folder):
                return [f"left after gc: {left}"]
        if state == "before" or scene.before == scene.after:
            scene.work(folder)
        state, wrong = scene.state(folder)
        if state != "after" or wrong:
            return [f"done again, without faults, it is {state!r}: {wrong}"]
        _collect_all(folder)
        with ss.open(folder / STORE) as store:
            problems = store.verify()
    except Exception as error:
        return [f"going on: {describe(error)}"]
    left = unneeded(scene, folder)
    return ([f"left at the end: {left}"] if left else []) + ([f"verify: {problems[:3]}"] if problems else [])


def _collect_all(folder: Path) -> None:
    """What is left of a store that never was may be nothing at all."""
    try:
        gc(folder / STORE, keep_versions=100, older_than=0)
    except FileNotFoundError:
        if (folder / STORE).exists() and any((folder / STORE).iterdir()):
            raise


def unneeded(scene: Scene, folder: Path) -> list[str]:
    """What nobody needs, in the store and beside it."""
    own = (STORE, SOURCE, EXPORTED) if isinstance(scene, Export) else (STORE, SOURCE)
    beside = [path.name for path in folder.iterdir() if path.name not in own]
    if not (folder / STORE).exists():
        return beside
    if scene.before is None and not list((folder / STORE).glob("versions/0*")):
        return beside + [str(path.relative_to(folder)) for path in (folder / STORE).rglob("*")]
    return beside + unnamed(folder / STORE)


# ------------------------------------------------------------------------------------------------------- the scenes


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Parts of a conversion, pages of segment lines and what a shuffle holds are small; one thread does all."""

    def shuffled(blocks: Any, **options: Any) -> Any:
        return sort_rows(blocks, **{**options, "max_bytes": 2_500})

    sort_rows = sort.shuffled_blocks
    with (
        mock.patch("sparsestore.parallel.n_cores", return_value=1),
        mock.patch("sparsestore.writer.INLINE_SEGMENTS", 2),
        mock.patch("sparsestore.writer.PART_BYTES", 1_200),
        mock.patch("sparsestore.writer.HOLD_BYTES", 100),
        mock.patch("sparsestore.convert.WRITER_BYTES", 200),
        mock.patch("sparsestore.convert.BLOCK_BYTES", 1_000),
        mock.patch("sparsestore.convert.shuffled_blocks", shuffled),
        # a matrix in memory has its rows taken from where they stand, which makes no calls, where their order has room
        mock.patch("sparsestore.convert.ORDER_BYTES", 1 << 40),
    ):
        yield


def _nothing(folder: Path) -> None:
    (folder / SOURCE).write_bytes(_svmlight(range(700)))


def _svmlight(numbers: Any, *, zero_based: bool = False) -> bytes:
    """Rows as text."""
    x, columns = rows_of(numbers)
    lines = []
    for row, label in enumerate(columns["y"]):
        entries = zip(x[[row]].indices + (not zero_based), x[[row]].data, strict=True)
        lines.append(" ".join([str(label), *(f"{index}:{value:g}" for index, value in entries)]))
    return ("\n".join(lines) + "\n").encode()


def _convert(folder: Path) -> None:
    ss.convert(folder / SOURCE, folder / STORE, n_features=WIDTH, progress=False)


def _two_versions(folder: Path) -> None:
    """Rows 0 to 20 in one, and 0 to 40 in the next."""
    path = folder / STORE
    x, columns = rows_of(range(20))
    ss.convert(x, path, columns=columns, progress=False).close()
    x, columns = rows_of(range(20, 40))
    with ss.open(path) as store:
        store.append(x, **columns).close()


def _overwrite(folder: Path) -> None:
    x, columns = rows_of(range(100, 136))
    options: dict[str, Any] = {"shuffle": True, "seed": 1, "profile": "compact", "overwrite": True, "progress": False}
    ss.convert(x, folder / STORE, columns=columns, **options).close()


def _append(folder: Path) -> None:
    x, columns = rows_of(range(40, 60))
    with ss.open(folder / STORE) as store:
        store.append(x, **columns).close()


def _versions_and_garbage(folder: Path) -> None:
    """Rows 0 to 20 and then, in place of them, 100 to 136, and what two dead writers left."""
    x, columns = rows_of(range(20))
    ss.convert(x, folder / STORE, columns=columns, progress=False).close()
    _overwrite(folder)
    for number in range(2):
        x, columns = rows_of(range(60 + number, 70))
        writer = ss.writer.append_to(folder / STORE)
        writer.append(x, **columns)
        if number:
            writer._open_segment()
            writer._close_segment()
        writer._journal.release()


def _collect(folder: Path) -> None:
    with ss.open(folder / STORE) as store:
        store.gc(keep_versions=1, older_than=0)


def _small_segments(folder: Path) -> None:
    """Rows 0 to 56 in seven segments, a version each, with names of the features."""
    path = folder / STORE
    for start in range(0, 56, 8):
        x, columns = rows_of(range(start, start + 8))
        if start:
            with ss.open(path) as store:
                store.append(x, **columns).close()
        else:
            names = [f"feature {i}" for i in range(WIDTH)]
            ss.convert(x, path, columns=columns, feature_names=names, progress=False).close()


def _optimize(folder: Path) -> None:
    optimize(folder / STORE, progress=False)


def _labelled(folder: Path) -> None:
    """As `_two_versions`, with labels alone, which svmlight can hold."""
    x, columns = rows_of(range(40))
    ss.convert(x[:20], folder / STORE, columns={"y": columns["y"][:20]}, progress=False).close()
    with ss.open(folder / STORE) as store:
        store.append(x[20:], y=columns["y"][20:]).close()


def _labelled_and_exported(folder: Path) -> None:
    _labelled(folder)
    (folder / EXPORTED).write_bytes(_svmlight(range(5), zero_based=True))


def _export(folder: Path, *, overwrite: bool) -> None:
    export(folder / STORE, folder / EXPORTED, zero_based=True, overwrite=overwrite, progress=False)


def _read(folder: Path, *, mmap: bool) -> None:
    with ss.open(folder / STORE, mmap=mmap) as store:
        read_all(store)


def read_all(store: ss.Store) -> None:
    """Read all rows in every way; RuntimeError where an answer is wrong."""
    if wrong := wrong_rows(store, 0, 40):
        raise RuntimeError(wrong)
    for layout in ("sparse", "dense"):
        ids = []
        for batch in store.loader(8, shuffle=True, seed=0, layout=layout, block_rows=4):
            x = sp.csr_array(batch.x)
            if (x != rows_of(batch.row_ids)[0]).nnz or not np.array_equal(batch.y, batch.row_ids):
                raise RuntimeError("a batch has wrong rows")
            ids.append(batch.row_ids)
        if not np.array_equal(np.sort(np.concatenate(ids)), np.arange(40)):
            raise RuntimeError("an epoch lacks rows")
    if problems := store.verify():
        raise OSError(f"verify: {problems}")


SCENES: tuple[Scene, ...] = (
    Scene("convert", _nothing, _convert, None, (1, 0, 700)),
    Scene("shuffle and overwrite", _two_versions, _overwrite, (2, 0, 40), (3, 100, 136)),
    Scene("append", _two_versions, _append, (2, 0, 40), (3, 0, 60)),
    Scene("gc", _versions_and_garbage, _collect, (2, 100, 136), (2, 100, 136)),
    Scene("read mapped", _two_versions, partial(_read, mmap=True), (2, 0, 40), (2, 0, 40)),
    Scene("read", _two_versions, partial(_read, mmap=False), (2, 0, 40), (2, 0, 40)),
)
MORE_SCENES: tuple[Scene, ...] = (
    Scene("optimize", _small_segments, _optimize, (7, 0, 56), (8, 0, 56)),
    Export("export", _labelled, partial(_export, overwrite=False), None, (0, 0, 40)),
    Export("export over a file", _labelled_and_exported, partial(_export, overwrite=True), (0, 0, 5), (0, 0, 40)),
)
"""Those of campaigns of their own: the cases of others keep their numbers."""


@contextlib.contextmanager
def stage(scene: Scene, folder: Path) -> Iterator[Callable[[], Path]]:
    """Gives a function that makes a fresh copy of what a scene begins with; it is done once before: all is warm."""
    first = folder / "first"
    first.mkdir(parents=True)
    scene.begin(first)
    warm = folder / "warm"
    shutil.copytree(first, warm)
    scene.work(warm)
    name, wrong = scene.state(warm)
    if wrong or name != "after":
        raise AssertionError(f"{scene.name}: without faults it is {name!r}: {wrong}")

    def fresh() -> Path:
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(first, place)
        return place

    try:
        yield fresh
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def staged(
    cases: Sequence[int], scene_of: Callable[[int], Scene], folder: Path, of: Sequence[Scene] = SCENES
) -> Iterator[tuple[Scene, list[int], Callable[[], Path]]]:
    """The scenes of some cases, each on its stage, with the numbers of its cases; the folder is gone afterwards."""
    folder = small_store.place(folder)
    by_scene: dict[str, list[int]] = {}
    for case in cases:
        by_scene.setdefault(scene_of(case).name, []).append(case)
    try:
        for scene in of:
            if scene.name in by_scene:
                with strict(), small(), stage(scene, folder / scene.name.replace(" ", "-")) as fresh:
                    yield scene, by_scene[scene.name], fresh
    finally:
        shutil.rmtree(folder, ignore_errors=True)
