"""gc: old versions, and what no version needs and no writer is making or may go on with."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field

from sparsestore.format import manifest_key
from sparsestore.journal import FOLDER, Journal, JournalState, all_journals, owner_of
from sparsestore.manifest import read_manifest, segment_lines, versions
from sparsestore.storage import LocalStorage, open_storage
from sparsestore.writer import is_skeleton, remove_skeleton

__all__ = ["gc", "parse_age"]

_FOLDERS = ("segments", "features", "versions/pages", FOLDER)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_age(age: str | float) -> float:
    """Seconds in ``"24h"``, ``"30m"`` or a number of seconds.

    Examples
    --------
    >>> parse_age("1.5h")
    5400.0
    """
    if isinstance(age, (int, float)) and not isinstance(age, bool):
        seconds = float(age)
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\s*", str(age))
        if not match:
            raise ValueError(f"older_than is {age!r}, expected seconds or a string such as '24h', '30m' or '0s'")
        seconds = float(match[1]) * _SECONDS[match[2]]
    if not seconds >= 0:
        raise ValueError(f"older_than is {age!r}, expected no negative age")
    return seconds


def gc(
    path: str | os.PathLike[str], *, keep_versions: int = 1, older_than: str | float = "24h", dry_run: bool = False
) -> list[str]:
    """Remove all but the newest versions, then what no remaining version needs.

    Parameters
    ----------
    path : str or path-like
    keep_versions : int
        How many of the newest versions stay; at least 1.
    older_than : str or float
        Age from which goes what no version needs. What a writer made that ended before it published goes when its
        journal is that old: until then an interrupted conversion can be gone on with.
    dry_run : bool
        Only tell what would go.

    Returns
    -------
    list of str
        Keys removed, in order.

    Raises
    ------
    FileNotFoundError
        Where there is no store, nor the beginnings of one.
    CorruptStoreError
        Where a version that stays can not be read: nothing is removed then.

    Notes
    -----
    Versions go first, then journals, so that a crash half-way leaves garbage, and never a version without its segments
    or an interrupted conversion without its parts. Files that other processes have mapped stay readable to them. What a
    running writer makes is never removed, whatever its age, nor a version that was published since that writer began.
    Where nothing but the beginnings of a store were, its folder goes too.
    """
    if isinstance(keep_versions, bool) or keep_versions < 1:
        raise ValueError(f"keep_versions is {keep_versions}, expected at least 1")
    oldest = time.time() - parse_age(older_than)
    storage = open_storage(path)
    if not versions(storage) and not any(storage.list(folder) for folder in _FOLDERS) and not is_skeleton(storage):
        read_manifest(storage)  # says what is there instead
    # Listed before writers are asked, and versions read after: what is listed and in no writer's journal was published
    # before the versions are read, or never will be.
    candidates = [f"{folder}/{name}" for folder in _FOLDERS for name in storage.list(folder)]
    writers = _Writers.of(storage, oldest)
    try:
        numbers = versions(storage)
        kept = numbers[-keep_versions:]
        # a writer that read the versions before may take any higher number than the newest of then: such a number must
        # not become free, or its version would be older than others by its rows and newer by none
        dropped = [number for number in numbers[:-keep_versions] if number <= writers.base]
        needed = _needed(storage, [number for number in numbers if number not in dropped])
        old = [manifest_key(number) for number in dropped]
        dead: list[str] = []
        rest: list[str] = []
        for key in candidates:
            if key in needed or key in writers.spared or key == "versions/pages":
                continue
            owner = owner_of(key)
            if key in writers.dead:
                dead.append(key)
            elif (
                key in writers.lost
                or owner in writers.dead
                or (owner not in writers.known and _is_old(storage, key, oldest))
            ):
                rest.append(key)
        for folder, keys in (("versions", old), (FOLDER, dead), ("", rest)) if not dry_run else ():
            for key in keys:
                storage.remove(key)
            if folder and keys:
                storage.sync(folder)  # or a power cut could bring them back without what they name
    finally:
        writers.release()
    if not kept and not dry_run:
        remove_skeleton(storage, with_root=True)
    return [*old, *dead, *rest]


def _is_old(storage: LocalStorage, key: str, oldest: float) -> bool:
    try:
        return storage.modified(key) <= oldest
    except FileNotFoundError:  # its writer was faster
        return False


def _needed(storage: LocalStorage, numbers: list[int]) -> set[str]:
    """Keys of the segments, pages and features that some versions name."""
    needed: set[str] = set()
    for number in numbers:
        manifest = read_manifest(storage, number)
        needed |= {f"segments/{line.id}" for line in segment_lines(storage, manifest)}
        needed |= {page.object.key for page in manifest.pages}
        needed |= {manifest.features.prefix} if manifest.features else set()
    return needed


@dataclass
class _Writers:
    """What the journals of a store say.

    Attributes
    ----------
    base : int
        The lowest version that a living writer started from.
    known, dead : set of str
        Keys of the journals that are there; of those whose writer is dead, long enough.
    spared, lost : set of str
        Keys of what is being made, or may be gone on with; of what dead writers made.
    """

    base: int = 2**63
    known: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    spared: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    held: list[Journal] = field(default_factory=list)

    @classmethod
    def of(cls, storage: LocalStorage, oldest: float) -> _Writers:
        """Ask all journals; those of dead writers are held until `release`, so that nobody goes on with one."""
        writers = cls()
        try:
            for key in all_journals(storage):
                journal = Journal.adopt(storage, key)
                try:
                    state = journal.state if journal else JournalState.parse(storage.read(key))
                    old = journal is not None and storage.modified(key) <= oldest
                except FileNotFoundError:
                    continue
                finally:
                    if journal:
                        writers.held.append(journal)
                writers.known.add(key)
                if old:
                    writers.dead.add(key)
                    writers.lost |= state.made
                else:
                    writers.spared |= state.made
                if not journal:
                    writers.base = min(writers.base, state.base)
        except BaseException:
            writers.release()
            raise
        return writers

    def release(self) -> None:
        """Let go of the journals of the dead."""
        for journal in self.held:
            journal.release()
