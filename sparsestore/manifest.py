"""Which versions a store has, and what one says: found, read, checked."""

from __future__ import annotations

import re

from sparsestore.checksum import crc32c
from sparsestore.documents import parse_json, unseal
from sparsestore.errors import CorruptStoreError, FormatError, MissingStoreError, SparsestoreError
from sparsestore.format import FORMAT, Manifest, SegmentLine, manifest_key
from sparsestore.storage import LocalStorage

__all__ = ["is_foreign", "latest_version", "read_manifest", "segment_lines", "versions"]

_NAME = re.compile(r"(\d{8,})\.json")


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
        _check_root(storage)
    except SparsestoreError:
        return storage.exists("zarr.json")
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
    found = versions(storage)
    if not found:
        if not storage.exists(""):
            raise MissingStoreError(f"{storage.name}: no such store: make one with sparsestore.convert or create")
        if storage.exists("zarr.json") or storage.exists("segments"):
            raise MissingStoreError(f"{storage.name}: the store has no version: its conversion was not finished")
        raise MissingStoreError(f"{storage.name} is no sparsestore: it has no folder 'versions'")
    number = found[-1] if version is None else version
    if number not in found:
        raise MissingStoreError(f"{storage.name}: there is no version {number}, there are {_listed(found)}")
    _check_root(storage)
    key = manifest_key(number)
    payload = storage.read(key)
    if not unseal(payload, crc32c):
        raise CorruptStoreError(
            f"{storage.name}: {key}, bytes 0 to {len(payload)}: the manifest does not match its crc32c. "
            f"{_good(storage, found, number)}"
        )
    name = f"{storage.name}: {key}"
    manifest = Manifest.from_document(parse_json(payload, name), name)
    if manifest.version != number:
        raise CorruptStoreError(f"{name} is that of version {manifest.version}: it was copied or renamed")
    return manifest


def _check_root(storage: LocalStorage) -> None:
    """The group's own zarr.json says which format this is."""
    name = f"{storage.name}: zarr.json"
    try:
        root = parse_json(storage.read("zarr.json"), name)
    except FileNotFoundError:
        raise CorruptStoreError(f"{name} is missing") from None
    attributes = root.get("attributes")
    facts = attributes.get("sparsestore") if isinstance(attributes, dict) else None
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise FormatError(
            f"{name}: format {found!r} is not known to this release, which reads format {FORMAT}: "
            f"upgrade sparsestore, or convert the data again"
        )


def _listed(found: list[int]) -> str:
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _good(storage: LocalStorage, found: list[int], bad: int) -> str:
    """What to do instead of reading a damaged manifest."""
    for number in reversed([n for n in found if n != bad]):
        if unseal(storage.read(manifest_key(number)), crc32c):
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
