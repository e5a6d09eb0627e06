"""The house's own rules: lint, types, documents that run, names that are documented."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer.main

import sparsestore

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a Python module or file; its output is given, or the message of a failure."""
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_ruff_finds_nothing() -> None:
    run("-m", "ruff", "check", "--quiet", ".")


def test_ruff_would_format_nothing() -> None:
    run("-m", "ruff", "format", "--check", "--quiet", ".")


def test_mypy_strict_finds_nothing() -> None:
    run("-m", "mypy")


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def readme_blocks(language: str) -> list[str]:
    return blocks_of(README, language)


def test_readme_python_runs_as_printed(tmp_path: Path) -> None:
    blocks = readme_blocks("python")
    assert blocks
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    run("-W", "error::UserWarning", str(script), cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "jax", "keras"])
def test_page_of_frameworks_runs_as_printed(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(framework, reason=f"needs {framework}")
    store, *blocks = blocks_of((ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8"), "python")
    (block,) = [block for block in blocks if block.startswith(f"import {framework}\n")]
    script = tmp_path / "page.py"
    # processes that are spawned import the script, where that is how they start
    code = textwrap.indent(store + block, "    ")
    script.write_text(f'if __name__ == "__main__":\n{code}', encoding="utf-8")
    out = run("-W", "error::UserWarning", str(script), cwd=tmp_path)
    assert float(out.split()[-1]) >= 0.9


def test_page_of_keras_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    blocks = blocks_of((ROOT / "docs" / "keras.md").read_text(encoding="utf-8"), "python")
    assert len(blocks) == 3
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    run("-W", "error::UserWarning", str(script), cwd=tmp_path)


def test_readme_command_lines_run_as_printed(tmp_path: Path) -> None:
    """The lines that start with `sparsestore` work one after the other beside the bundled data."""
    lines = [line for block in readme_blocks("sh") for line in block.splitlines() if line.startswith("sparsestore ")]
    assert len(lines) >= 5
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for line in lines:
        run("-m", "sparsestore", *line.partition("#")[0].split()[1:], cwd=tmp_path)


def test_readme_names_the_install_line_and_both_set_up_commands() -> None:
    assert 'pip install "sparsestore[tensorflow]"' in README
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize("document", [README, *(path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md"))])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", document)
    folders = [ROOT, ROOT / "docs", ROOT / "docs" / "decisions"]
    assert [target for target in targets if not any((folder / target).exists() for folder in folders)] == []


def test_changelog_names_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {PROJECT['version']}\n" in changelog
    assert sparsestore.__version__ == PROJECT["version"]


MODULES = [
    module.name
    for module in pkgutil.walk_packages(sparsestore.__path__, "sparsestore.")
    if not module.name.endswith("__main__")
]
PURE = [name for name in MODULES if not name.startswith("sparsestore.bridges.")]


@pytest.mark.parametrize("name", ["sparsestore", *PURE])
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=options).failed == 0


def test_some_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder()
    assert any(test.examples for name in PURE for test in finder.find(importlib.import_module(name)))


def public_names() -> list[str]:
    """Every name of `sparsestore.__all__`, and the public methods and properties of its classes."""
    names = []
    for name in sparsestore.__all__:
        value = getattr(sparsestore, name)
        names.append(f"sparsestore.{name}")
        if inspect.isclass(value) and not issubclass(value, Exception):
            names += [f"sparsestore.{name}.{member}" for member in vars(value) if not member.startswith("_")]
    return names


# numpydoc's codes: no docstring, no summary, one of several lines; parameters that do not exist or stand in another
# order; sections that are unknown or out of order.
DOCSTRING_RULES = {"GL08", "SS01", "SS06", "PR02", "PR03", "GL06", "GL07"}


@pytest.mark.parametrize("name", [name for name in public_names() if not name.endswith("__version__")])
def test_public_name_has_a_numpydoc_docstring(name: str) -> None:
    from numpydoc.validate import validate

    value: object = sparsestore
    for part in name.split(".")[1:]:
        value = inspect.getattr_static(value, part)
    if not (inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, property)):
        return  # a field: documented by its class
    assert [f"{code}: {text}" for code, text in validate(name)["errors"] if code in DOCSTRING_RULES] == []


def test_public_names_are_sorted_and_exist() -> None:
    assert list(sparsestore.__all__) == sorted(sparsestore.__all__)
    assert [name for name in sparsestore.__all__ if not hasattr(sparsestore, name)] == []


def commands() -> dict[str, object]:
    from sparsestore.cli import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(commands()))
def test_command_has_help_and_stands_in_the_documents(name: str) -> None:
    command = commands()[name]
    assert command.help, name  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    for parameter in command.params:  # type: ignore[attr-defined]
        if parameter.name == "help":
            continue
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"
        names = [*parameter.opts, *parameter.secondary_opts]
        wanted = [option for option in names if option.startswith("--")] or [parameter.metavar]
        assert [option for option in wanted if option not in section] == [], name


def test_version_is_that_of_the_installed_distribution() -> None:
    assert importlib.metadata.version("sparsestore") == PROJECT["version"]
