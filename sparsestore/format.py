"""Format 1 as plain types: manifests and segments to JSON and back. No I/O. The normative text is docs/format.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsestore.documents import Problems, key_problem
from sparsestore.errors import FormatError
from sparsestore.zarr_format import group_document

__all__ = [
    "DRAWN",
    "FORMAT",
    "INLINE_SEGMENTS",
    "PROFILES",
    "ROOT",
    "ROW_ID",
    "ColumnSchema",
    "FeaturesDocument",
    "FeaturesEntry",
    "Manifest",
    "ObjectEntry",
    "PageEntry",
    "SegmentDocument",
    "SegmentLine",
    "column_problem",
    "is_own_key",
    "manifest_key",
    "root_document",
    "unknown_format",
]

FORMAT = 1
ROOT = "zarr.json"
"""Key of the metadata of the store's own group."""
INLINE_SEGMENTS = 256
"""Segment lines that a manifest holds itself; older ones stand in pages."""
PROFILES = ("raw", "compact")
ROW_ID = "row_id"
"""The column with the numbers that rows had before they were shuffled."""
DRAWN = ("segments", "features", "versions/pages", "writers")
"""Folders in which everything has a name that its writer drew at random."""
_ID = "[0-9a-f]{32}"
_OWN_KEY = re.compile(
    rf"{re.escape(ROOT)}|segments|features|versions|writers|(segments|features)/{_ID}|versions/pages"
    rf"|versions/[0-9]{{8,}}\.json|versions/pages/{_ID}\.json|writers/{_ID}(\..*)?",
    re.DOTALL,
)


def column_problem(name: Any) -> str | None:
    """What is wrong with a column name; None when it can be the name of an array."""
    if not isinstance(name, str) or not name:
        return f"a column name must be a non-empty string, found {name!r}"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return f"column name {name!r} is no valid text: rename it"
    if (
        "/" in name
        or key_problem(name)
        or name.startswith((".", "__"))
        or name.endswith(".mask")
        or name == "zarr.json"
    ):
        return (
            f"column name {name!r} can not be stored: it must have no '/', backslash or control character, not start "
            f"with '.' or '__' and not end with '.mask'; rename it"
        )
    if len(name.encode()) > 200:
        return f"column name {name[:40]!r}... is longer than 200 bytes; rename it"
    return None


def unknown_format(name: str, found: Any) -> FormatError:
    """What to say of a document of another format."""
    return FormatError(
        f"{name}: format {found!r} is not known to this release, which reads format {FORMAT}: "
        f"upgrade sparsestore, or convert the data again"
    )


def root_document(id: str) -> dict[str, Any]:
    """`zarr.json` of the store that has this id: manifests name its crc32c, so that none passes for another store's."""
    return group_document({"sparsestore": {"format": FORMAT}, "id": id})


@dataclass(frozen=True, slots=True)
class FeaturesEntry:
    """Where the names of the features are: id of the folder, and crc32c of its features.json."""

    id: str
    crc32c: int

    @property
    def prefix(self) -> str:
        """Key of the folder."""
        return f"features/{self.id}"

    def to_json(self) -> list[Any]:
        """As it stands in the manifest: ``[id, "crc32c"]``."""
        return [self.id, f"{self.crc32c:08x}"]

    @classmethod
    def from_json(cls, value: Any, path: str, problems: Problems) -> FeaturesEntry:
        """Back from `to_json`."""
        items = problems.items(value, path)
        if len(items) != 2:
            problems.add(path, value, "[id, crc32c]")
            return cls("invalid", 0)
        return cls(problems.key(items[0], f"{path}[0]"), problems.crc32c(items[1], f"{path}[1]"))


@dataclass(frozen=True, slots=True)
class FeaturesDocument:
    """features.json: what a folder of names holds.

    Attributes
    ----------
    n : int
        Names.
    objects : tuple of ObjectEntry
        Every object of the folder but features.json, keys relative to the folder.
    """

    n: int
    objects: tuple[ObjectEntry, ...]

    def to_document(self) -> dict[str, Any]:
        """The JSON of features.json."""
        return {"format": FORMAT, "n": self.n, "objects": [entry.to_json() for entry in self.objects]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], name: str) -> FeaturesDocument:
        """Back from `to_document`; FormatError lists every problem."""
        problems = Problems(name)
        _check_format(document, problems)
        found = cls(
            n=problems.integer(document.get("n"), "n"),
            objects=_objects(document, problems, "features.json"),
        )
        problems.raise_if_any()
        return found


@dataclass(frozen=True, slots=True)
class ColumnSchema:
    """Dtype of a column and what follows the row axis in its shape: () or, for numbers, (k,)."""

    dtype: str
    shape: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One stored object: key (relative to its segment), length in bytes and crc32c of all its bytes."""

    key: str
    length: int
    crc32c: int

    def to_json(self) -> list[Any]:
        """As it stands in documents: ``[key, length, "crc32c"]``."""
        return [self.key, self.length, f"{self.crc32c:08x}"]

    @classmethod
    def from_json(cls, value: Any, path: str, problems: Problems) -> ObjectEntry:
        """Back from `to_json`."""
        items = problems.items(value, path)
        if len(items) != 3:
            problems.add(path, value, "[key, length, crc32c]")
            return cls("invalid", 0, 0)
        return cls(
            problems.key(items[0], f"{path}[0]"),
            problems.integer(items[1], f"{path}[1]"),
            problems.crc32c(items[2], f"{path}[2]"),
        )


@dataclass(frozen=True, slots=True)
class SegmentLine:
    """What a manifest says of a segment.

    Attributes
    ----------
    id : str
        Name of its folder under ``segments/``.
    rows, nnz : int
    crc32c : int
        Of its segment.json.
    shuffled : bool
        Whether its rows are in a random order, exactly shuffled when they were written.
    row_id_start : int
        Number of the first row in all the rows ever appended; row i has ``row_id_start + i``, or where the segment has
        a column ``row_id`` of its own, ``row_id_start + row_id[i]``.
    """

    id: str
    rows: int
    nnz: int
    crc32c: int
    shuffled: bool = False
    row_id_start: int = 0

    def to_json(self) -> list[Any]:
        """As it stands in the manifest: ``[id, rows, nnz, "crc32c", shuffled, row_id_start]``."""
        return [self.id, self.rows, self.nnz, f"{self.crc32c:08x}", self.shuffled, self.row_id_start]

    @classmethod
    def from_json(cls, value: Any, path: str, problems: Problems) -> SegmentLine:
        """Back from `to_json`."""
        items = problems.items(value, path)
        if len(items) != 6 or not isinstance(items[0], str) or "/" in items[0]:
            problems.add(path, value, "[id, rows, nnz, crc32c, shuffled, row_id_start]")
            return cls("invalid", 0, 0, 0)
        rows = problems.integer(items[1], f"{path}[1]", least=1)
        return cls(
            problems.key(items[0], f"{path}[0]"),
            rows,
            problems.integer(items[2], f"{path}[2]"),
            problems.crc32c(items[3], f"{path}[3]"),
            problems.flag(items[4], f"{path}[4]"),
            problems.integer(items[5], f"{path}[5]", most=2**63 - 1 - rows),
        )


@dataclass(frozen=True, slots=True)
class PageEntry:
    """An immutable page of older segment lines: its object and how many segments it has."""

    object: ObjectEntry
    segments: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a store.

    Attributes
    ----------
    version : int
        From 1.
    parent : int or None
        The version that this one was made from.
    rows, n_features, nnz : int
    dtype : str
        Logical dtype of the values.
    columns : dict of str to ColumnSchema
    root : ObjectEntry
        The group's own zarr.json.
    segments : tuple of SegmentLine
        The newest, at most 256; older ones stand in `pages`.
    pages : tuple of PageEntry
        Oldest first.
    features : FeaturesEntry or None
        Names of the features; None where they have none.
    shuffled : dict or None
        How rows were shuffled when they were stored: ``{"method": "exact", "seed": 0}``; None unless all were.
    profile : str
        Profile for segments to come.
    created : str
        ISO 8601, UTC.
    attrs : dict
        Free JSON: provenance.
    """

    version: int
    parent: int | None
    rows: int
    n_features: int
    nnz: int
    dtype: str
    columns: dict[str, ColumnSchema]
    root: ObjectEntry
    segments: tuple[SegmentLine, ...]
    pages: tuple[PageEntry, ...] = ()
    features: FeaturesEntry | None = None
    shuffled: dict[str, Any] | None = None
    profile: str = "raw"
    created: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def n_segments(self) -> int:
        """Segments of this version, pages included."""
        return len(self.segments) + sum(page.segments for page in self.pages)

    def to_document(self) -> dict[str, Any]:
        """The manifest's JSON, without its own crc32c (see `seal`)."""
        return {
            "format": FORMAT,
            "version": self.version,
            "parent": self.parent,
            "shape": [self.rows, self.n_features],
            "nnz": self.nnz,
            "dtype": self.dtype,
            "columns": {name: schema.to_json() for name, schema in self.columns.items()},
            "features": None if self.features is None else self.features.to_json(),
            "shuffled": self.shuffled,
            "profile": self.profile,
            "created": self.created,
            "attrs": self.attrs,
            "root": self.root.to_json(),
            "pages": [[*page.object.to_json(), page.segments] for page in self.pages],
            "segments": [line.to_json() for line in self.segments],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], name: str) -> Manifest:
        """Back from `to_document`; FormatError lists every problem, or says that the format is not known."""
        found = document.get("format")
        if found != FORMAT or type(found) is not int:
            raise unknown_format(name, found)
        problems = Problems(name)
        shape = problems.items(document.get("shape"), "shape")
        if len(shape) != 2:
            problems.add("shape", shape, "[rows, features]")
            shape = [0, 0]
        columns: dict[str, ColumnSchema] = {}
        for column, schema in problems.mapping(document.get("columns"), "columns").items():
            bad = column_problem(column)
            if bad or column == ROW_ID:
                problems.add("columns", column, bad or f"no {ROW_ID!r}, which is kept by segments")
            schema = problems.mapping(schema, f"columns.{column}")
            tail = problems.items(schema.get("shape"), f"columns.{column}.shape")
            for unknown in sorted(schema.keys() - {"dtype", "shape"}):
                problems.add(f"columns.{column}.{unknown}", schema[unknown], "no such key")
            if len(tail) > 1:
                problems.add(f"columns.{column}.shape", tail, "[] or [k]")
            dtype = problems.dtype(schema.get("dtype"), f"columns.{column}.dtype", strings=True)
            if dtype == "string" and tail:
                problems.add(f"columns.{column}.shape", tail, "[], as text has one value a row")
            columns[column] = ColumnSchema(
                dtype,
                tuple(problems.integer(n, f"columns.{column}.shape", least=1) for n in tail),
            )
        pages = []
        for i, page in enumerate(problems.items(document.get("pages"), "pages")):
            page = problems.items(page, f"pages[{i}]")
            entry = ObjectEntry.from_json(page[:3], f"pages[{i}]", problems)
            pages.append(
                PageEntry(entry, problems.integer(page[3] if len(page) == 4 else None, f"pages[{i}][3]", least=1))
            )
        lines = tuple(
            SegmentLine.from_json(line, f"segments[{i}]", problems)
            for i, line in enumerate(problems.items(document.get("segments"), "segments"))
        )
        parent, features, shuffled = document.get("parent"), document.get("features"), document.get("shuffled")
        manifest = cls(
            version=problems.integer(document.get("version"), "version", least=1),
            parent=None if parent is None else problems.integer(parent, "parent", least=1),
            rows=problems.integer(shape[0], "shape[0]"),
            n_features=problems.integer(shape[1], "shape[1]"),
            nnz=problems.integer(document.get("nnz"), "nnz"),
            dtype=problems.dtype(document.get("dtype"), "dtype"),
            columns=columns,
            root=ObjectEntry.from_json(document.get("root"), "root", problems),
            segments=lines,
            pages=tuple(pages),
            features=None if features is None else FeaturesEntry.from_json(features, "features", problems),
            shuffled=None if shuffled is None else dict(problems.mapping(shuffled, "shuffled")),
            profile=problems.choice(document.get("profile"), "profile", PROFILES),
            created=problems.text(document.get("created"), "created"),
            attrs=dict(problems.mapping(document.get("attrs"), "attrs")),
        )
        if not pages:
            totals = sum(line.rows for line in lines), sum(line.nnz for line in lines)
            if totals != (manifest.rows, manifest.nnz):
                problems.add("segments", totals, f"rows and nnz that add up to {(manifest.rows, manifest.nnz)}")
        problems.raise_if_any()
        return manifest

    def page_lines(self, document: Mapping[str, Any], name: str) -> tuple[SegmentLine, ...]:
        """Segment lines of a page's JSON."""
        problems = Problems(name)
        _check_format(document, problems)
        lines = tuple(
            SegmentLine.from_json(line, f"segments[{i}]", problems)
            for i, line in enumerate(problems.items(document.get("segments"), "segments"))
        )
        problems.raise_if_any()
        return lines


def _check_format(document: Mapping[str, Any], problems: Problems) -> None:
    found = document.get("format")
    if found != FORMAT or type(found) is not int:
        problems.add("format", found, str(FORMAT))


def _objects(document: Mapping[str, Any], problems: Problems, own: str) -> tuple[ObjectEntry, ...]:
    """What a document with the name `own` says of the other objects of its folder."""
    objects = tuple(
        ObjectEntry.from_json(entry, f"objects[{i}]", problems)
        for i, entry in enumerate(problems.items(document.get("objects"), "objects"))
    )
    keys = {entry.key for entry in objects}
    if len(keys) != len(objects) or own in keys:
        problems.add("objects", f"{len(objects)} objects", f"each once, and not {own} itself")
    return objects


def manifest_key(version: int) -> str:
    """Key of a manifest."""
    return f"versions/{version:08d}.json"


def is_own_key(key: str) -> bool:
    """Whether a writer makes what has this key: not where another name lies in a folder of the store, or beside it.

    Examples
    --------
    >>> is_own_key("features/" + "0" * 32), is_own_key("features/ages.csv")
    (True, False)
    """
    return _OWN_KEY.fullmatch(key) is not None


@dataclass(frozen=True, slots=True)
class SegmentDocument:
    """segment.json: what an immutable segment holds.

    Attributes
    ----------
    rows, nnz, n_features : int
        `n_features` is the segment's own width; the store may be wider.
    indices_dtype, data_dtype : str
        As stored.
    constant : bool
        All values are equal: they stand as the fill_value of ``X/data``, which has no chunk.
    longest_row : int
        Most entries in a row.
    profile : str
    objects : tuple of ObjectEntry
        Every object of the segment but segment.json, keys relative to the segment.
    """

    rows: int
    nnz: int
    n_features: int
    indices_dtype: str
    data_dtype: str
    constant: bool
    longest_row: int
    profile: str
    objects: tuple[ObjectEntry, ...]

    def to_document(self) -> dict[str, Any]:
        """The JSON of segment.json."""
        return {
            "format": FORMAT,
            "rows": self.rows,
            "nnz": self.nnz,
            "n_features": self.n_features,
            "indices_dtype": self.indices_dtype,
            "data_dtype": self.data_dtype,
            "constant": self.constant,
            "longest_row": self.longest_row,
            "profile": self.profile,
            "objects": [entry.to_json() for entry in self.objects],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], name: str) -> SegmentDocument:
        """Back from `to_document`; FormatError lists every problem."""
        problems = Problems(name)
        _check_format(document, problems)
        segment = cls(
            rows=problems.integer(document.get("rows"), "rows", least=1),
            nnz=problems.integer(document.get("nnz"), "nnz"),
            n_features=problems.integer(document.get("n_features"), "n_features"),
            indices_dtype=problems.dtype(document.get("indices_dtype"), "indices_dtype"),
            data_dtype=problems.dtype(document.get("data_dtype"), "data_dtype"),
            constant=problems.flag(document.get("constant"), "constant"),
            longest_row=problems.integer(document.get("longest_row"), "longest_row"),
            profile=problems.choice(document.get("profile"), "profile", PROFILES),
            objects=_objects(document, problems, "segment.json"),
        )
        if "int" not in segment.indices_dtype:
            problems.add("indices_dtype", segment.indices_dtype, "a dtype of whole numbers")
        if segment.data_dtype in ("bool", "float16"):
            problems.add("data_dtype", segment.data_dtype, "a wider one: bool stands as uint8, float16 as float32")
        chunk = next((entry.key for entry in segment.objects if entry.key.startswith("X/data/c/")), None)
        if segment.constant and chunk is not None:  # which nobody would read
            problems.add("objects", chunk, "no chunk of X/data, as constant is true")
        problems.raise_if_any()
        return segment
