"""Versions of a store: the newest is found, a damaged one is told and never replaced in silence."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import sparsestore as ss
from sparsestore.checksum import crc32c
from sparsestore.documents import dump, seal
from sparsestore.errors import CorruptStoreError, FormatError, MissingStoreError
from sparsestore.format import Manifest, ObjectEntry, PageEntry, SegmentLine, manifest_key, root_document
from sparsestore.manifest import is_foreign, latest_version, read_manifest, segment_lines, versions
from sparsestore.storage import LocalStorage

ROOT_DOCUMENT = dump(root_document("0" * 32))
ROOT_ENTRY = ObjectEntry("zarr.json", len(ROOT_DOCUMENT), crc32c(ROOT_DOCUMENT))


def manifest(version: int, lines: tuple[SegmentLine, ...] = (), pages: tuple[PageEntry, ...] = ()) -> Manifest:
    rows = sum(line.rows for line in lines) + sum(page.segments for page in pages)
    return Manifest(version, version - 1 or None, rows, 5, 0, "float32", {}, ROOT_ENTRY, lines, pages)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """A store of three versions without rows."""
    storage = LocalStorage(tmp_path / "store")
    storage.put("zarr.json", ROOT_DOCUMENT)
    for version in (1, 2, 3):
        storage.put(manifest_key(version), seal(manifest(version).to_document(), crc32c))
    return storage


def flip(storage: LocalStorage, key: str, at: int) -> None:
    payload = bytearray(storage.read(key))
    payload[at] ^= 1
    storage.path(key).write_bytes(payload)


def test_the_newest_version_is_read_unless_another_is_asked_for(storage: LocalStorage) -> None:
    assert versions(storage) == [1, 2, 3]
    assert latest_version(storage) == 3
    assert read_manifest(storage).version == 3
    assert read_manifest(storage, 2).version == 2


def test_versions_beyond_eight_digits_come_last(storage: LocalStorage) -> None:
    storage.put(manifest_key(100_000_000), seal(manifest(100_000_000).to_document(), crc32c))
    assert latest_version(storage) == 100_000_000


def test_what_a_crash_leaves_is_no_version(storage: LocalStorage) -> None:
    storage.put("versions/.tmp-0123", b"{")
    storage.put("versions/4.json", b"{")
    storage.put("versions/00000004.json~", b"{")
    assert versions(storage) == [1, 2, 3]


def test_an_absent_store_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such store: make one with sparsestore\.convert or create"):
        read_manifest(LocalStorage(tmp_path / "none"))


def test_a_folder_of_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingStoreError, match="is no sparsestore: it has no folder 'versions'"):
        read_manifest(LocalStorage(tmp_path))
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments/ages.csv").write_text("mine")
    with pytest.raises(MissingStoreError, match="is no sparsestore: it has no folder 'versions'"):
        read_manifest(LocalStorage(tmp_path))


def test_an_unfinished_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    with pytest.raises(MissingStoreError, match="no version: its conversion was not finished"):
        read_manifest(LocalStorage(tmp_path))


def test_an_absent_version_names_those_that_are_there(storage: LocalStorage) -> None:
    with pytest.raises(MissingStoreError, match="there is no version 7, there are 1 to 3"):
        read_manifest(storage, 7)


def test_every_flipped_byte_of_a_manifest_is_told_with_the_last_good_version(storage: LocalStorage) -> None:
    key = manifest_key(3)
    whole = storage.read(key)
    for at in range(len(whole)):
        flip(storage, key, at)
        with pytest.raises(
            CorruptStoreError, match=r"00000003\.json, bytes 0 to .* can be read is 2: open it with version=2"
        ):
            read_manifest(storage)
        storage.path(key).write_bytes(whole)


def test_a_damaged_manifest_that_is_alone_says_so(storage: LocalStorage) -> None:
    storage.remove(manifest_key(1))
    storage.remove(manifest_key(2))
    flip(storage, manifest_key(3), 40)
    with pytest.raises(CorruptStoreError, match="No other version can be read: convert the data again"):
        read_manifest(storage)


def test_a_manifest_that_was_cut_short_is_damage(storage: LocalStorage) -> None:
    whole = storage.read(manifest_key(3))
    for length in (0, 1, 20, len(whole) - 1):
        storage.path(manifest_key(3)).write_bytes(whole[:length])
        with pytest.raises(CorruptStoreError):
            read_manifest(storage)


def test_a_manifest_copied_over_another_is_damage(storage: LocalStorage) -> None:
    storage.path(manifest_key(3)).write_bytes(storage.read(manifest_key(2)))
    with pytest.raises(CorruptStoreError, match="is that of version 2: it was copied or renamed"):
        read_manifest(storage)


def test_a_folder_in_place_of_a_manifest_is_damage(storage: LocalStorage) -> None:
    storage.remove(manifest_key(3))
    storage.path(manifest_key(3)).mkdir()
    with pytest.raises(CorruptStoreError, match="no plain file"):
        read_manifest(storage)


def test_a_store_of_a_later_format_is_told(storage: LocalStorage) -> None:
    later = seal({**manifest(4).to_document(), "format": 2}, crc32c)
    storage.put(manifest_key(4), later)
    with pytest.raises(FormatError, match="format 2 is not known to this release, which reads format 1: upgrade"):
        read_manifest(storage)
    storage.path("zarr.json").write_bytes(storage.read("zarr.json").replace(b'"format":1', b'"format":2'))
    storage.remove("versions")  # it may have its manifests elsewhere
    with pytest.raises(FormatError, match=r"zarr\.json: format 2 is not known to this release"):
        read_manifest(storage)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"group"', b'"array"'), (b'{"sparsestore"', b'{"a":1,"sparsestore"'), (b"}}", b"}} ")],
    ids=["type", "attribute", "space"],
)
def test_an_edited_root_document_is_damage(storage: LocalStorage, old: bytes, new: bytes) -> None:
    payload = storage.read("zarr.json")
    edited = payload.replace(old, new)
    assert edited != payload
    storage.path("zarr.json").write_bytes(edited)
    with pytest.raises(CorruptStoreError, match=r"zarr\.json, bytes 0 to .* with crc32c .* it was changed since"):
        read_manifest(storage)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_manifest_of_another_store_is_told(tmp_path: Path, rows: int) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ss.convert(np.eye(3), here)
    ss.convert(np.eye(3)[:rows], there)
    shutil.copy(there / manifest_key(1), here / manifest_key(1))
    with pytest.raises(CorruptStoreError, match=r"zarr\.json, .* or versions/00000001\.json is another store's"):
        ss.open(here)


def test_the_newest_version_is_found_while_others_are_removed(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.read

    def removed_just_before(key: str) -> bytes:
        if key == manifest_key(3) and storage.exists(key):
            storage.put(manifest_key(4), seal(manifest(4).to_document(), crc32c))
            storage.remove(key)
        return real(key)

    monkeypatch.setattr(storage, "read", removed_just_before)
    assert read_manifest(storage).version == 4
    with pytest.raises(MissingStoreError, match="there is no version 3"):
        read_manifest(storage, 3)


def test_two_names_for_one_number_are_no_two_versions(storage: LocalStorage) -> None:
    for name in ("000000002.json", "00000002.json.json", "٠٠٠٠٠٠٠٤.json"):
        storage.put(f"versions/{name}", storage.read(manifest_key(2)))
    assert versions(storage) == [1, 2, 3]


def test_a_missing_root_document_is_damage(storage: LocalStorage) -> None:
    storage.remove("zarr.json")
    with pytest.raises(CorruptStoreError, match=r"zarr\.json is missing"):
        read_manifest(storage)


def test_only_the_zarr_json_of_something_else_is_foreign(storage: LocalStorage, tmp_path: Path) -> None:
    assert not is_foreign(storage)
    assert not is_foreign(LocalStorage(tmp_path / "none"))
    other = LocalStorage(tmp_path / "other")
    other.put("zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    assert is_foreign(other)


# ---------------------------------------------------------------------------------------------------------- pages


def paged(storage: LocalStorage) -> Manifest:
    lines = tuple(SegmentLine(f"{i:02x}", 1, 0, i) for i in range(5))
    pages = []
    for number, part in enumerate((lines[:2], lines[2:4])):
        written = storage.put(
            f"versions/pages/{number}.json", dump({"format": 1, "segments": [line.to_json() for line in part]})
        )
        pages.append(PageEntry(ObjectEntry(written.key, written.length, written.crc32c), 2))
    return manifest(4, lines[4:], tuple(pages))


def test_pages_come_before_what_is_inline(storage: LocalStorage) -> None:
    found = paged(storage)
    assert [line.id for line in segment_lines(storage, found)] == ["00", "01", "02", "03", "04"]
    assert found.n_segments == 5


def test_every_flipped_byte_of_a_page_is_damage(storage: LocalStorage) -> None:
    found = paged(storage)
    for at in range(storage.length("versions/pages/1.json")):
        flip(storage, "versions/pages/1.json", at)
        with pytest.raises(CorruptStoreError, match=r"version 4, versions/pages/1.json, bytes 0 to .*crc32c"):
            segment_lines(storage, found)
        flip(storage, "versions/pages/1.json", at)


def test_a_missing_page_is_damage(storage: LocalStorage) -> None:
    found = paged(storage)
    storage.remove("versions/pages/0.json")
    with pytest.raises(CorruptStoreError, match=r"versions/pages/0\.json is missing"):
        segment_lines(storage, found)


def test_segments_that_do_not_add_up_are_damage(storage: LocalStorage) -> None:
    found = dataclasses.replace(paged(storage), rows=9)
    with pytest.raises(CorruptStoreError, match=r"\(5, 0\) rows and entries, the manifest says \(9, 0\)"):
        segment_lines(storage, found)
