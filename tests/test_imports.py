"""Which module may import which, and that no framework is loaded by those who do not train."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparsestore"

# What a module may import inside the package. A folder's name means every module in it. Folders: same-folder imports
# are allowed where the table says so. The store may import all but cli; cli all but the bridges.
DISK = {
    "arrays",
    "checksum",
    "csr",
    "documents",
    "errors",
    "format",
    "manifest",
    "statistics",
    "storage",
    "zarr_format",
}
SHARED = {
    "csr",
    "errors",
    "kernels",
    "parallel",
    "sources.base",
    "sources.layouts",
    "sources.file",
    "sources.options",
    "sources.text",
    "sources.containers",
    "values",
}
TABLES = {
    *SHARED,
    *(f"sources.{name}" for name in ("categories", "dictionary", "fields", "numbering", "ranges", "row_values")),
}
TYPED = {*TABLES, "sources.arrow", "sources.table"}
TABLE: dict[str, set[str]] = {
    "__init__": {"errors", "store", "version"},
    "__main__": {"cli"},
    "errors": set(),
    "version": set(),
    "forking": set(),
    "kernels": {"forking", "kernels"},
    "checksum": set(),
    "prefetch": {"errors", "forking"},
    "memory": set(),
    "progress": set(),
    "parallel": set(),
    "workers": {"errors", "parallel"},
    "indexing": set(),
    "csr": {"errors", "forking", "kernels", "parallel", "values"},
    "values": set(),
    "statistics": {"errors"},
    "documents": {"errors"},
    "zarr_format": {"documents"},
    "format": {"documents", "errors", "zarr_format"},
    "layout": {"errors", "format", "zarr_format"},
    "storage": {"errors", "checksum"},
    "arrays": {"checksum", "documents", "errors", "forking", "format", "kernels", "layout", "parallel", "storage"}
    | {"zarr_format"},
    "manifest": {"checksum", "documents", "errors", "format", "storage"},
    "features": {"arrays", "checksum", "documents", "errors", "format", "layout", "storage", "zarr_format"},
    "columns": {"format"},
    "segment_writer": {*DISK, "layout"},
    "journal": {"checksum", "documents", "errors", "storage"},
    "writer": {*DISK, "columns", "features", "journal", "layout", "memory", "segment_writer"},
    "segment": {*DISK, "buffers", "forking", "kernels"},
    "buffers": set(),
    "reader": {*DISK, "buffers", "features", "forking", "kernels", "parallel", "segment", "values"},
    "read_ahead": {"buffers", "memory", "storage", "window"},
    "window": {"batch", "buffers", "csr", "reader", "storage"},
    "plan": {"errors", "forking", "kernels", "plan"},
    "batch": {"csr", "errors", "forking"},
    "weights": {"forking", "format", "plan", "reader"},
    "loader": {"batch", "buffers", "plan", "csr", "forking", "reader", "prefetch", "read_ahead", "window"}
    | {"errors", "format", "weights"},
    "inputs": {"batch", "loader"},
    "sources": SHARED,
    "sources.npz": {*SHARED, "sources.npy"},
    "sources.registry": {"errors", "sources", "storage"},  # whose URLs of files it takes too
    "sources.libffm": {*SHARED, "sources.svmlight"},
    "sources.lda_c": {*SHARED, "sources.svmlight"},
    "sources.uci": {*SHARED, "sources.matrix_market"},
    "sources.categories": {*SHARED, "sources.dictionary"},
    "sources.numbering": TABLES,
    "sources.csv": TABLES,
    "sources.triples": TABLES,
    "sources.vw": TABLES,
    "sources.arrow": {"errors"},
    "sources.table": TYPED,
    "sources.wide_table": TYPED,
    "sources.list_table": TYPED,
    "sources.triple_table": TYPED,
    "sources.parquet": TYPED,
    "sources.arrow_file": TYPED,
    "sources.frame": TYPED,
    "sources.queries": TYPED,
    "sources.containers": {*SHARED, "sources.hdf5_file", "sources.zarr_folder"},
    "sources.h5ad": {*SHARED, "features"},
    "sources.tenx": {*SHARED, "features", "sources.matrix_market"},
    "sources.iterable": {*SHARED, "columns", "sources.memory"},
    "sources.store": {*SHARED, "checksum", "format", "indexing", "manifest", "plan", "reader", "storage", "view"},
    "sources.fingerprint": {"checksum", "sources"},
    "buckets": {"errors", "storage"},
    "sort": {"buckets", "csr", "kernels", "memory", "parallel", "plan", "errors", "sources.base", "values"},
    "convert": {
        "columns",
        "progress",
        "sources.base",
        "sources.registry",
        "csr",
        "plan",
        "sort",
        "layout",
        "writer",
        "errors",
        "version",
    }
    | {"features", "format", "journal", "manifest", "sources.fingerprint"}  # to go on where another was interrupted
    | {"documents"}  # what is compared as a journal has it
    | {"sources.file"}  # how messages show text of a file
    | {"workers"}
    | {"reader", "storage"},  # the hint at sorted rows; the folder of the buckets
    "flags": set(),
    "preview": {"columns", "convert", "format", "manifest", "sources.base", "storage", "store", "writer"},
    "exports": {"csr", "exports", "kernels", "parallel", "progress", "sources.base"},
    "export": {"errors", "exports", "layout", "progress", "sources.store", "storage", "view"},
    "audit": {"checksum", "format", "statistics", "zarr_format"},
    "row_starts": {"kernels", "statistics"},
    "inspection": {*DISK, "audit", "kernels", "row_starts"},
    "integrity": {*DISK, "audit", "features", "inspection", "memory", "parallel", "progress", "reader", "row_starts"},
    "maintain": {"journal", "reader", "writer", "format", "manifest", "storage", "errors"}
    | {"checksum", "convert", "layout", "plan", "progress", "segment", "sources", "view"},  # optimize, a conversion
    "bench": {"batch", "bench", "errors", "manifest", "memory", "parallel", "progress", "reader", "storage", "store"},
    "bridges": {"loader", "batch", "buffers", "csr", "errors", "forking", "inputs", "window"},
    "keras": {"keras"},
    "bridges.keras": {"loader", "batch", "csr", "forking", "inputs", "bridges.jax"},  # whose arrays Keras takes on JAX
    "view": {
        "batch",
        "bridges",
        "csr",
        "errors",
        "forking",
        "format",
        "indexing",
        "inputs",
        "layout",
        "loader",
        "memory",
        "plan",
        "reader",
        "weights",
        "window",
    },
}
NUMBA_ONLY_IN = "kernels"
FRAMEWORKS = ("tensorflow", "torch", "jax", "keras")


def module_name(path: Path) -> str:
    """ "plan.window" for sparsestore/plan/window.py; a folder's own file is named after the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Every name that a file imports, in function bodies too; `from a import b` gives a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix("sparsestore.")
                found.add(f"{base}.{alias.name}" if base.startswith("sparsestore") and inner in MODULES else base)
    return found


def inner_imports(name: str) -> set[str]:
    """Modules of the package that a module imports, without the package's own name."""
    return {found.removeprefix("sparsestore.") for found in imports(MODULES[name]) if found.startswith("sparsestore.")}


def allowed(importer: str, imported: str) -> bool:
    """Whether the table lets one module import another."""
    if importer == "store":
        return imported not in {"cli", "__main__"}
    if importer == "cli":
        return not imported.startswith("bridges")
    folder = importer.partition(".")[0]
    permitted = TABLE.get(importer, TABLE.get(folder, set()))
    return imported in permitted or imported.partition(".")[0] in permitted


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_the_table_allows(name: str) -> None:
    assert name in TABLE or name.partition(".")[0] in TABLE or name in {"store", "cli"}, f"{name} is not in the table"
    assert [found for found in sorted(inner_imports(name)) if not allowed(name, found)] == []


@pytest.mark.parametrize("name", MODULES)
def test_module_does_not_import_the_package_root(name: str) -> None:
    assert "sparsestore" not in imports(MODULES[name])


def test_imports_have_no_cycle() -> None:
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"cycle: {' -> '.join((*trail, name))}"
        if name in state:
            return
        state[name] = 1
        for found in sorted(inner_imports(name)):
            visit(found, (*trail, name))
        state[name] = 2

    for name in MODULES:
        visit(name, ())


def test_numba_is_imported_by_kernels_only() -> None:
    users = {name for name, path in MODULES.items() if any(f.partition(".")[0] == "numba" for f in imports(path))}
    assert {name for name in users if name.partition(".")[0] != NUMBA_ONLY_IN} == set()
    assert users


def test_frameworks_are_imported_by_bridges_only() -> None:
    users = {name for name, path in MODULES.items() if any(f.partition(".")[0] in FRAMEWORKS for f in imports(path))}
    assert {name for name in users if name.partition(".")[0] not in {"bridges", "keras"}} == set()
    assert users


def test_table_names_only_modules_that_exist() -> None:
    folders = {name.partition(".")[0] for name in MODULES}
    assert [name for name in TABLE if name not in MODULES and name not in folders] == []


# ---- what a process has loaded in the end

PROBE = """
import json, runpy, sys
arguments = json.loads(sys.argv[1])
if arguments is None:
    import sparsestore
else:
    sys.argv = ["sparsestore", *arguments]
    try:
        runpy.run_module("sparsestore", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def loaded(arguments: list[str] | None, **environment: str) -> set[str]:
    """Top-level packages in a fresh process after `import sparsestore` (None) or after a command."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stderr.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a matrix x.npz and a store s.zarr of it."""
    import sparsestore as ss

    folder = tmp_path_factory.mktemp("imports")
    x = scipy.sparse.random_array((300, 20), density=0.1, format="csr", rng=np.random.default_rng(0))
    scipy.sparse.save_npz(folder / "x.npz", x)
    ss.convert(x, folder / "s.zarr", columns={"y": np.arange(300) % 2})
    return folder


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {*FRAMEWORKS, "numba", "zarr", "pandas", "rich", "typer"}
    assert loaded(None) & heavy == set()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["convert", "{}/x.npz", "{}/new.zarr"], id="convert"),
        pytest.param(["convert", "{}/x.npz", "{}/shuffled.zarr", "--shuffle", "--seed", "0"], id="convert-shuffle"),
        pytest.param(["append", "{}/x.npz", "{}/target.zarr"], id="append"),
        pytest.param(["info", "{}/s.zarr"], id="info"),
        pytest.param(["head", "{}/s.zarr"], id="head"),
        pytest.param(["plan", "{}/s.zarr", "--batch-size", "32"], id="plan"),
        pytest.param(["bench", "{}/s.zarr", "--repeat", "1", "--step-time", "1"], id="bench"),
        pytest.param(["verify", "{}/s.zarr"], id="verify"),
        pytest.param(["gc", "{}/s.zarr", "--dry-run"], id="gc"),
        pytest.param(["optimize", "{}/s.zarr"], id="optimize"),
        pytest.param(["export", "{}/s.zarr", "{}/x.svm.gz"], id="export"),
        pytest.param(["--help"], id="help"),
    ],
)
def test_command_loads_no_framework(arguments: list[str], files: Path) -> None:
    if arguments[0] == "append":
        import sparsestore as ss

        ss.convert(files / "x.npz", files / "target.zarr", overwrite=True)
    assert loaded([argument.format(files) for argument in arguments]) & {*FRAMEWORKS, "matplotlib"} == set()


def test_info_loads_no_compiler_and_no_scipy(files: Path) -> None:
    assert loaded(["info", str(files / "s.zarr")]) & {"numba", "scipy", "zarr"} == set()


def test_the_check_of_loaded_packages_can_fail(tmp_path: Path) -> None:
    """A module that starts with Python and imports a package called tensorflow is seen."""
    (tmp_path / "tensorflow.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import tensorflow\n")
    assert loaded(None, PYTHONPATH=str(tmp_path)) & {*FRAMEWORKS} == {"tensorflow"}


def test_the_walk_of_imports_sees_function_bodies(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "def f():\n    import tensorflow.data\n    from sparsestore import store\n    import sparsestore\n"
    )
    assert imports(source) == {"tensorflow.data", "sparsestore.store", "sparsestore"}
