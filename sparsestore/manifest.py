"""Which versions a store has, and what one says: found, read, checked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator

from sparsestore.checksum import crc32c
from sparsestore.documents import parse_json, unseal
from sparsestore.errors import CorruptStoreError, MissingStoreError, SparsestoreError
from sparsestore.format import (
    FORMAT,
    ROOT,
    Manifest,
    ObjectEntry,
    SegmentDocument,
    SegmentLine,
    is_own_key,
    manifest_key,
    unknown_format,
)
from sparsestore.storage import LocalStorage

__all__ = [
    "is_foreign",
    "latest_version",
    "missing_objects",
    "needed_keys",
    "read_manifest",
    "root_entry",
    "segment_document",
    "segment_lines",
    "versions",
]

_NAME = re.compile(r"([0-9]{8}|[1-9][0-9]{8,17})\.json")
_OPENINGS = 100  # tries to read the newest manifest while others publish and remove


def versions(storage: LocalStorage) -> list[int]:
    """Numbers of all versions that are there, ascending."""
    found = (_NAME.fullmatch(name) for name in storage.list("versions"))
    return sorted(int(match[1]) for match in found if match)


def latest_version(storage: LocalStorage) -> int | None:
    """Number of the newest version; None where there is none."""
    found = versions(storage)
    return found[-1] if found else None


def is_foreign(storage: LocalStorage) -> bool:
    """Whether a folder's zarr.json is that of something else."""
    try:
        root_entry(storage)
    except FileNotFoundError:
        return False
    except SparsestoreError:
        return True
    return False


def read_manifest(storage: LocalStorage, version: int | None = None) -> Manifest:
    """One version of a store, the newest by default.

    Raises
    ------
    MissingStoreError
        Where there is no store, or no such version.
    FormatError
        Where the store has a format that is not known.
    CorruptStoreError
        Where the manifest is damaged; an older version is never taken in its place.
    """
    for _ in range(_OPENINGS if version is None else 1):
        found = versions(storage)
        number = _chosen(storage, found, version)
        key = manifest_key(number)
        try:
            payload = storage.read(key)
        except FileNotFoundError:  # gc was faster: there is a newer one now
            continue
        break
    else:
        raise MissingStoreError(f"{storage.name}: version {number} was removed meanwhile, there are {_listed(found)}")
    if not unseal(payload, crc32c):
        raise CorruptStoreError(
            f"{storage.name}: {key}, bytes 0 to {len(payload)}: the manifest does not match its crc32c. "
            f"{_good(storage, found, number)}"
        )
    name = f"{storage.name}: {key}"
    manifest = Manifest.from_document(parse_json(payload, name), name)
    if manifest.version != number:
        raise CorruptStoreError(f"{name} is that of version {manifest.version}: it was copied or renamed")
    _check_root(storage, manifest.root, key)
    return manifest


def _chosen(storage: LocalStorage, found: list[int], version: int | None) -> int:
    """Number of the version asked for."""
    if not found:
        if not storage.exists(""):
            raise MissingStoreError(f"{storage.name}: no such store: make one with sparsestore.convert or create")
        if storage.exists(ROOT):
            root_entry(storage)  # of a later format, perhaps
        own = all(is_own_key(f"segments/{name}") for name in storage.list("segments"))
        if storage.exists(ROOT) or (own and storage.exists("segments")):
            raise MissingStoreError(f"{storage.name}: the store has no version: its conversion was not finished")
        raise MissingStoreError(f"{storage.name} is no sparsestore: it has no folder 'versions'")
    if version is not None and version not in found:
        raise MissingStoreError(f"{storage.name}: there is no version {version}, there are {_listed(found)}")
    return found[-1] if version is None else version


def root_entry(storage: LocalStorage) -> ObjectEntry:
    """The group's own zarr.json as it is.

    Raises
    ------
    FileNotFoundError
    FormatError
        Where it is not that of a store of a format that is known.
    """
    name = f"{storage.name}: {ROOT}"
    payload = storage.read(ROOT)
    root = parse_json(payload, name)
    attributes = root.get("attributes")
    facts = attributes.get("sparsestore") if isinstance(attributes, dict) else None
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise unknown_format(name, found)
    return ObjectEntry(ROOT, len(payload), crc32c(payload))


def _check_root(storage: LocalStorage, expected: ObjectEntry, manifest: str) -> None:
    """A zarr.json that says anything else than when the store was made was changed, or the manifest is not of here."""
    name = f"{storage.name}: {ROOT}"
    try:
        payload = storage.read(ROOT)
    except FileNotFoundError:
        raise CorruptStoreError(f"{name} is missing") from None
    if expected.key != ROOT or (len(payload), crc32c(payload)) != (expected.length, expected.crc32c):
        with contextlib.suppress(FileNotFoundError):
            root_entry(storage)  # of another format
        raise CorruptStoreError(
            f"{name}, bytes 0 to {len(payload)}: expected {expected.length} bytes with crc32c {expected.crc32c:08x}, "
            f"found {crc32c(payload):08x}: it was changed since the store was made, or {manifest} is another store's"
        )


def _listed(found: list[int]) -> str:
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _good(storage: LocalStorage, found: list[int], bad: int) -> str:
    """What to do instead of reading a damaged manifest."""
    for number in reversed([n for n in found if n != bad]):
        with contextlib.suppress(FileNotFoundError, CorruptStoreError):
            if not unseal(storage.read(manifest_key(number)), crc32c):
                continue
            return f"The last version that can be read is {number}: open it with version={number}"
    return "No other version can be read: convert the data again"


def segment_lines(storage: LocalStorage, manifest: Manifest) -> list[SegmentLine]:
    """All segments of a version in row order, pages read and checked.

    Raises
    ------
    CorruptStoreError
    """
    lines: list[SegmentLine] = []
    for page in manifest.pages:
        entry = page.object
        name = f"{storage.name}: version {manifest.version}, {entry.key}"
        try:
            payload = storage.read(entry.key)
        except FileNotFoundError:
            raise CorruptStoreError(f"{name} is missing") from None
        if len(payload) != entry.length or crc32c(payload) != entry.crc32c:
            raise CorruptStoreError(
                f"{name}, bytes 0 to {len(payload)}: expected {entry.length} bytes with crc32c {entry.crc32c:08x}, "
                f"found {crc32c(payload):08x}"
            )
        found = manifest.page_lines(parse_json(payload, name), name)
        if len(found) != page.segments:
            raise CorruptStoreError(f"{name}: it has {len(found)} segments, expected {page.segments}")
        lines += found
    lines += manifest.segments
    totals = sum(line.rows for line in lines), sum(line.nnz for line in lines)
    if totals != (manifest.rows, manifest.nnz):
        raise CorruptStoreError(
            f"{storage.name}: version {manifest.version}: its segments have {totals} rows and entries, "
            f"the manifest says {(manifest.rows, manifest.nnz)}"
        )
    return lines


def needed_keys(storage: LocalStorage, dropped: Collection[int] = ()) -> dict[str, tuple[int, int]]:
    """Keys of the segments, pages and names of features that versions name, but for those of some numbers.

    Each with the first and the last version that names it.

    Others may publish and collect garbage meanwhile. A version that is removed before it was read needs nothing; but
    the newest is removed only where there is a newer one by then, which may need the same: so they are listed again.

    Raises
    ------
    CorruptStoreError, FormatError
        Where a version that is there can not be read.
    """
    needed, seen = dict[str, tuple[int, int]](), set(dropped)
    while numbers := [number for number in versions(storage) if number not in seen]:
        for number in numbers:
            try:
                manifest = read_manifest(storage, number)
                lines = segment_lines(storage, manifest)
            except (MissingStoreError, CorruptStoreError):  # a page is removed after the manifest that names it
                if storage.exists(manifest_key(number)):
                    raise
                continue
            keys = {f"segments/{line.id}" for line in lines} | {page.object.key for page in manifest.pages}
            keys |= {manifest.features.prefix} if manifest.features else set()
            for key in keys:
                first, last = needed.get(key, (number, number))
                needed[key] = min(first, number), max(last, number)
        seen.update(numbers)
    return needed


def segment_document(storage: LocalStorage, line: SegmentLine) -> SegmentDocument:
    """What a segment says of itself.

    Raises
    ------
    CorruptStoreError
    """
    key = f"segments/{line.id}/segment.json"
    name = f"{storage.name}: {key}"
    try:
        payload = storage.read(key)
    except FileNotFoundError:
        raise CorruptStoreError(f"{name} is missing") from None
    if crc32c(payload) != line.crc32c:
        raise CorruptStoreError(
            f"{name}, bytes 0 to {len(payload)}: crc32c {crc32c(payload):08x}, expected {line.crc32c:08x}"
        )
    return SegmentDocument.from_document(parse_json(payload, name), name)


def missing_objects(storage: LocalStorage, line: SegmentLine) -> Iterator[str]:
    """What of a segment is not there with the length it should have; of its content only segment.json is read."""
    prefix = f"segments/{line.id}"
    try:
        document = segment_document(storage, line)
    except CorruptStoreError as error:
        yield str(error)
        return
    for entry in document.objects:
        name = f"{storage.name}: {prefix}/{entry.key}"
        try:
            length = storage.length(f"{prefix}/{entry.key}")
        except FileNotFoundError:
            yield f"{name} is missing"
            continue
        except CorruptStoreError as error:
            yield str(error)
            continue
        if length != entry.length:
            yield f"{name} has {length} bytes, expected {entry.length}"
