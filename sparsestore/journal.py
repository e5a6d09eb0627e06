"""What a running writer tells others: what it is making, and which parts of a conversion are done.

A journal is ``writers/<id>``, held by its writer while that lives (see `sparsestore.storage.LocalStorage.hold`). Each
line is a crc32c and a JSON object; what follows the first line that does not match its crc32c was cut short by a crash.
What stands beside it, ``writers/<id>.*``, is its writer's too: temporary files and folders.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sparsestore.checksum import crc32c
from sparsestore.documents import dump, parse_json
from sparsestore.errors import SparsestoreError
from sparsestore.storage import Held, LocalStorage

__all__ = ["ABANDONED_S", "FOLDER", "Journal", "JournalState", "Told", "all_journals", "owner_of"]

FOLDER = "writers"
ABANDONED_S = 24 * 3600
"""Age from which a journal without a lock is taken for a dead writer's: what `gc` waits by default."""
_NAME = re.compile(r"[0-9a-f]{32}")
_TRIES = 1000  # to make a journal while others remove its folder


@dataclass
class JournalState:
    """What a journal says.

    Attributes
    ----------
    base : int
        The newest version when its writer looked last: it will not make one of that number or a lower one.
    segments, pages : set of str
        Keys of what it makes, or has made.
    job : dict or None
        What is being converted, for those who would go on with it.
    parts : list of dict
        Whole segments, durable, in order, as the writer describes them; where several processes write, each a part of
        the rows, with the "number" of the part.
    length : int
        Bytes that were read: whole lines.
    features : set of str
        As segments and pages.
    folders : int
        How many folders were not there before: the store's own, and those above it.
    """

    base: int = 0
    segments: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    job: dict[str, Any] | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    length: int = 0
    features: set[str] = field(default_factory=set)
    folders: int = 0

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Back from the bytes of a journal, up to where a crash cut it short."""
        state = cls()
        for line in payload.splitlines(keepends=True):
            if not line.endswith(b"\n") or line[:9] != b"%08x " % crc32c(line[9:]):
                break
            try:
                entry = parse_json(line[9:], "journal")
            except SparsestoreError:
                break
            state.take(entry)
            state.length += len(line)
        return state

    @property
    def rows(self) -> int:
        """Rows in whole segments that somebody may go on behind."""
        return sum({part.get("number"): int(part["rows"]) for part in self.parts}.values())

    @property
    def made(self) -> set[str]:
        """Keys of all that it makes, or has made."""
        return self.segments | self.pages | self.features

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take in what a line says."""
        kind, value = entry.get("kind"), entry.get("value")
        if kind == "base" and isinstance(value, int):
            self.base = max(self.base, value)
        elif kind == "segment" and isinstance(value, str):
            self.segments.add(value)
        elif kind == "page" and isinstance(value, str):
            self.pages.add(value)
        elif kind == "features" and isinstance(value, str):
            self.features.add(value)
        elif kind == "folders" and isinstance(value, int):
            self.folders = value
        elif kind == "job" and isinstance(value, dict):
            self.job = value
        elif kind == "part" and isinstance(value, dict):
            self.parts.append(value)


class Journal:
    """The journal of a writer in this process."""

    def __init__(self, storage: LocalStorage, held: Held, state: JournalState) -> None:
        self._storage = storage
        self._held = held
        self.state = state

    @classmethod
    def start(cls, storage: LocalStorage, base: int) -> Journal:
        """A new one."""
        key, held, tries = "", None, 0
        try:
            while held is None:  # gc may look at a new name for a moment, to see whether its writer lives
                key = f"{FOLDER}/{uuid.uuid4().hex}"
                try:
                    held = storage.hold(key, make=True)
                except FileNotFoundError:  # or another writer that gives up may take the folder away
                    tries += 1
                    if tries == _TRIES:  # no folder can be made there
                        raise
                if held is None:
                    storage.remove(key)
            journal = cls(storage, held, JournalState())
            journal.note("base", base)
            return journal
        except BaseException:
            if key:
                storage.remove(key)
            if held is not None:
                held.release()
            raise

    @classmethod
    def adopt(cls, storage: LocalStorage, key: str) -> Journal | None:
        """One whose writer is dead, or `may_live`; None where it lives, or there is none any more."""
        try:
            held = storage.hold(key)
        except FileNotFoundError:
            return None
        return None if held is None else cls(storage, held, JournalState.parse(held.read()))

    @property
    def key(self) -> str:
        """Where it lies."""
        return self._held.key

    @property
    def locked(self) -> bool:
        """Whether nobody else has it: False where there are no locks."""
        return self._held.locked

    def may_live(self) -> bool:
        """Whether its writer may be at work though nobody else held it: there are no locks, and it is not old."""
        try:
            return not self.locked and time.time() - self._storage.modified(self.key) < ABANDONED_S
        except FileNotFoundError:  # it ended just now
            return True

    def renew(self) -> None:
        """Where there are no locks, show by its age that somebody goes on with it."""
        if not self.locked:
            self.note("base", self.state.base)

    @property
    def descriptor(self) -> int:
        """Of the file. Processes that inherit it hold the journal too: it is let go of once all of them have ended."""
        return self._held.descriptor

    @property
    def temporary(self) -> str:
        """Key for an object that is about to get another name."""
        return f"{self.key}.tmp"

    @property
    def scratch(self) -> str:
        """Key of a folder for what its writer needs for a while."""
        return f"{self.key}.scratch"

    def note(self, kind: str, value: Any, *, durable: bool = False) -> None:
        """Tell others. What is to be made is told before it is made."""
        line = dump({"kind": kind, "value": value}) + b"\n"
        self._held.write(b"%08x " % crc32c(line) + line, self.state.length, durable=durable)
        self.state.take({"kind": kind, "value": value})
        self.state.length += 9 + len(line)

    def tidy(self) -> None:
        """Remove what its writer needed for a while."""
        self._storage.remove(self.temporary)
        self._storage.remove(self.scratch)

    def end(self, *, keep: bool = False) -> None:
        """Let go of it and remove it, or leave it for somebody to go on from its parts."""
        try:
            self.tidy()
            if not keep:
                self._storage.remove(self.key)
        finally:
            self._held.release()

    def release(self) -> None:
        """Let go of it and leave it as it is."""
        self._held.release()

    def give_up(self) -> None:
        """Before a part is removed: nobody is to go on from it, though this process be killed half-way.

        Then what it names is garbage by its age. Without parts the journal goes last: whoever comes next finds it, and
        removes the rest.
        """
        if self.state.parts:
            self._storage.remove(self.key)
            self._storage.sync(FOLDER)

    def discard(self, needed: Collection[str] = ()) -> None:
        """Remove all that it names but what versions need, and itself."""
        self.give_up()
        for key in sorted(self.state.made - set(needed)):
            self._storage.remove(key)
        self.end()


class Told(Journal):
    """What a writer has in place of a journal whose journal is in another process: that is told."""

    def __init__(self, key: str, tell: Callable[[str, Any], None], parts: Sequence[Mapping[str, Any]]) -> None:
        self._key = key
        self._tell = tell
        self.state = JournalState(job={}, parts=[dict(part) for part in parts])

    @property
    def key(self) -> str:
        """Where the journal lies."""
        return self._key

    def note(self, kind: str, value: Any, *, durable: bool = False) -> None:  # noqa: ARG002 - the other process knows
        """Tell the other process, which answers once it has written it down."""
        self._tell(kind, value)
        self.state.take({"kind": kind, "value": value})

    def tidy(self) -> None:
        """Nothing is kept for a while."""

    def end(self, *, keep: bool = False) -> None:
        """It is not this process's."""

    def release(self) -> None:
        """It is not this process's."""


def all_journals(storage: LocalStorage) -> Iterator[str]:
    """Keys of all journals that are there."""
    for name in storage.list(FOLDER):
        if _NAME.fullmatch(name):
            yield f"{FOLDER}/{name}"


def owner_of(key: str) -> str:
    """Key of the journal that an object or folder in its folder belongs to."""
    return key.partition(".")[0]
