"""Names of the features: a folder of a store that never changes, which versions name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsestore.arrays import ArrayReader, ArrayWriter
from sparsestore.checksum import crc32c
from sparsestore.documents import dump, parse_json
from sparsestore.errors import CorruptStoreError
from sparsestore.format import FeaturesDocument, FeaturesEntry, ObjectEntry
from sparsestore.layout import COLUMN_CHUNK, codec_for
from sparsestore.storage import LocalStorage
from sparsestore.zarr_format import ArraySpec, group_document

__all__ = ["as_names", "check_names", "read_document", "read_names", "write_names"]

Names = NDArray[np.object_]

MOST_BYTES = 1_000
"""Of a name, as of a key of an object of JSON."""
_STEP = 1 << 16


def as_names(names: Iterable[Any]) -> Names:
    """Names as an array of str, one for each feature.

    Raises
    ------
    ValueError
        Where one is no text, empty, longer than 1,000 bytes, or stands twice.

    Examples
    --------
    >>> as_names(["age", "height"])
    array(['age', 'height'], dtype=object)
    """
    if isinstance(names, (str, bytes)):
        raise ValueError(f"feature_names is {names!r:.60}, expected a sequence of names")
    found = np.array([_text(number, name) for number, name in enumerate(names)] or [], object)
    if len(set(found.tolist())) < len(found):
        seen: dict[str, int] = {}
        for number, name in enumerate(found.tolist()):
            if name in seen:
                raise ValueError(f"feature {number} has the name {name!r}, as feature {seen[name]} has: rename one")
            seen[name] = number
    return found


def _text(number: int, name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"feature {number} has the name {name!r:.60}, expected text")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"feature {number} has the name {name!r:.60}, which is no valid text: rename it") from None
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"feature {number} has a name of {size} bytes, expected 1 to {MOST_BYTES}: rename it")
    return str(name)


def write_names(storage: LocalStorage, id: str, names: Names) -> FeaturesEntry:
    """Write a folder of names; nothing is durable yet."""
    prefix = f"features/{id}"
    writer = ArrayWriter(
        storage,
        f"{prefix}/names",
        "string",
        codec=codec_for("string", "raw"),
        chunk=COLUMN_CHUNK,
        fill_value="",
    )
    try:
        for at in range(0, len(names), _STEP):
            writer.append(names[at : at + _STEP])
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    group = storage.put(f"{prefix}/zarr.json", dump(group_document()))
    entries = [*writer.objects, ObjectEntry(group.key, group.length, group.crc32c)]
    objects = tuple(
        sorted(
            (ObjectEntry(entry.key[len(prefix) + 1 :], entry.length, entry.crc32c) for entry in entries),
            key=lambda entry: entry.key,
        )
    )
    payload = dump(FeaturesDocument(len(names), objects).to_document())
    storage.put(f"{prefix}/features.json", payload)
    return FeaturesEntry(id, crc32c(payload))


def read_document(storage: LocalStorage, entry: FeaturesEntry) -> FeaturesDocument:
    """What a folder of names holds.

    Raises
    ------
    CorruptStoreError
        Where it is missing or damaged.
    """
    key = f"{entry.prefix}/features.json"
    name = f"{storage.name}: {key}"
    try:
        payload = storage.read(key)
    except FileNotFoundError:
        raise CorruptStoreError(f"{name} is missing: a gc removed this version, or the object was lost") from None
    if crc32c(payload) != entry.crc32c:
        raise CorruptStoreError(f"{name}, bytes 0 to {len(payload)}: it does not match its crc32c in the manifest")
    return FeaturesDocument.from_document(parse_json(payload, name), name)


def read_names(storage: LocalStorage, entry: FeaturesEntry, n_features: int) -> Names:
    """All names, checked.

    Raises
    ------
    CorruptStoreError
        Where an object of the folder is missing or damaged, or names are too many or too few.
    """
    return np.asarray(_reader(storage, entry, n_features).read_all(), object)


def check_names(storage: LocalStorage, entry: FeaturesEntry, n_features: int) -> None:
    """See that names, all objects of which were compared with their crc32c before, are names: 8 bytes of memory each.

    Raises
    ------
    CorruptStoreError
        Where they can not be decoded.
    ValueError
        Where one is empty, longer than 1,000 bytes, or stands twice.
    """
    reader = _reader(storage, entry, n_features)
    hashes = np.empty(n_features, np.int64)
    for number, name in _each(reader):
        hashes[number] = hash(_text(number, name))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[str, int] = {}
    for number, name in _each(reader) if suspects else ():
        if name in seen:
            raise ValueError(f"feature {number} has the name {name!r:.60}, as feature {seen[name]} has")
        if hash(name) in suspects:
            seen[name] = number


def _each(reader: ArrayReader) -> Iterator[tuple[int, str]]:
    """Numbers and names, decoded some thousand at a time."""
    for number in range(reader.spec.n_chunks):
        first = number * reader.spec.chunk
        names = reader.chunks(np.arange(number, number + 1)).tolist()
        yield from enumerate(names[: reader.spec.shape[0] - first], first)


def _reader(storage: LocalStorage, entry: FeaturesEntry, n_features: int) -> ArrayReader:
    """Reader of the array of names."""
    document = read_document(storage, entry)
    prefix = entry.prefix
    if document.n != n_features:
        raise CorruptStoreError(
            f"{storage.name}: {prefix}/features.json: it has {document.n} names, expected {n_features}, one a feature"
        )
    entries = {f"{prefix}/{e.key}": ObjectEntry(f"{prefix}/{e.key}", e.length, e.crc32c) for e in document.objects}
    key = f"{prefix}/names/zarr.json"
    try:
        payload = storage.read(key)
    except FileNotFoundError:
        raise CorruptStoreError(f"{storage.name}: {key} is missing") from None
    if key not in entries or (len(payload), crc32c(payload)) != (entries[key].length, entries[key].crc32c):
        raise CorruptStoreError(
            f"{storage.name}: {key}, bytes 0 to {len(payload)}: it does not match its crc32c in features.json"
        )
    spec = ArraySpec.from_document(parse_json(payload, key), f"{storage.name}: {key}")
    if spec.dtype != "string" or spec.shape != (n_features,):
        raise CorruptStoreError(
            f"{storage.name}: {key}: {spec.shape} of {spec.dtype}, expected ({n_features},) of string"
        )
    return ArrayReader(
        storage,
        f"{prefix}/names",
        spec,
        entries,
        None,
        "first",
        lambda first, last: f"features {first} to {last}",
        mmap=False,  # `verify` reads what others may cut short
    )
