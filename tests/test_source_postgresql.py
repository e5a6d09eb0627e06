"""Queries of a real PostgreSQL server: equal to what was put in, streamed, and no password told to anyone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from check_source import read
from peak import peak_of
from postgresql import PASSWORD, server
from scipy import sparse
from typer.testing import CliRunner

import sparsestore as ss
from sparsestore.cli import app
from sparsestore.errors import SourceError
from sparsestore.sources.registry import open_source

pytest.importorskip("pyarrow")
dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with server(tmp_path_factory.mktemp("postgresql")) as port:
        address = f"postgresql://tester:{quote(PASSWORD)}@127.0.0.1:{port}/postgres"
        with dbapi.connect(address, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(
                "create table clicks as select (k * 7919 % 1000)::int as u, (k * 104729 % 300)::bigint as i, "
                "(k % 9 + 1)::real as x, 'item ' || (k * 104729 % 300) as item "
                "from generate_series(1::bigint, 200000) k"
            )
            cursor.execute("create table wide (a int, b double precision, y smallint, who text, n numeric)")
            cursor.execute("insert into wide values (0, 1.5, 1, 'ü', 1), (2, 0, 0, null, 2), (null, 3, 1, 'z', 3)")
        yield port


@pytest.fixture
def address(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGUSER", "tester")
    return f"postgresql://127.0.0.1:{port}/postgres"


def expected() -> sparse.coo_array:
    k = np.arange(1, 200_001)
    x = sparse.coo_array((k % 9 + 1, (k * 7919 % 1000, k * 104729 % 300)))
    x.sum_duplicates()
    return x


@pytest.mark.parametrize("shuffle", [False, True], ids=["in_order", "shuffled"])
def test_triples_of_a_table_are_the_matrix_of_scipy(address: str, tmp_path: Path, shuffle: bool) -> None:
    source = open_source(address, sql="select u, i, x from clicks order by random()", row="u", feature="i", value="x")
    store = ss.convert(source, tmp_path / "a.zarr", max_bytes="24MiB", shuffle=shuffle)
    order = store.column("row_id")[:] if shuffle else np.arange(1000)
    np.testing.assert_array_equal(store[:].toarray(), expected().toarray()[order])


def test_texts_become_features_in_the_order_of_the_answer(address: str, tmp_path: Path) -> None:
    query = "select u, item, x from clicks order by i, u;"
    store = ss.convert(address, tmp_path / "a.zarr", sql=query, row="u", feature="item", value="x")
    assert store.feature_names is not None
    assert store.feature_names.tolist() == [f"item {number}" for number in range(300)]
    np.testing.assert_array_equal(store[:].toarray(), expected().toarray())


@pytest.mark.parametrize("end", [" -- note", " -- note\n", ";", " /* note */"])
def test_a_query_may_end_in_a_comment(address: str, end: str) -> None:
    assert read(open_source(address, sql=f"select y from wide order by n{end}"))[0].toarray().tolist() == [
        [1],
        [0],
        [1],
    ]


def test_a_wide_table(address: str) -> None:
    query = "select a, b, y, who from wide order by n"
    source = open_source(address, sql=query, label="y", keep="who", missing="zero")
    found, columns = read(source)
    assert found.toarray().tolist() == [[0, 1.5], [2, 0], [0, 3]]
    assert source.feature_names == ["a", "b"]
    assert columns["y"].tolist() == [1, 0, 1]


def test_the_command_line_takes_what_the_environment_says(
    address: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(port))
    monkeypatch.setenv("PGDATABASE", "postgres")
    command = ["convert", "postgresql:", str(tmp_path / "a.zarr"), "--sql", "select u, i from clicks", "--row", "u"]
    done = CliRunner().invoke(app, [*command, "--feature", "i"])
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("SPARSESTORE_DSN", f"host=127.0.0.1 port={port} dbname=postgres")
    assert open_source("postgresql:", sql="select 1 as a").name == "postgresql 127.0.0.1/postgres"


def test_no_password_is_told_or_stored(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    sound = f"postgresql://tester:{quote(PASSWORD)}@127.0.0.1:{port}/postgres"
    store = ss.convert(sound, tmp_path / "a.zarr", sql="select u, i from clicks", row="u", feature="i")
    kept = json.dumps(store._reader.manifest.attrs)  # type: ignore[attr-defined]
    assert "postgresql 127.0.0.1/postgres" in kept
    assert "tester" not in kept
    for path in (tmp_path / "a.zarr").rglob("*"):
        assert not path.is_file() or quote(PASSWORD).encode() not in path.read_bytes()
    wrong = [
        sound.replace("s3cret", "s3cret-wrong"),
        f"host=127.0.0.1 port={port} dbname=postgres user=tester password=s3cret-wrong",
        "postgresql://tester:s3cret-wrong@127.0.0.1:1/x",
        f"host=127.0.0.1 port={port} user=tester s3cret-wrong",
        f"{sound}?nonsense=s3cret-wrong",
    ]
    for dsn in wrong:
        done = CliRunner().invoke(
            app, ["convert", "postgresql:", str(tmp_path / "b"), "--sql", "select 1", "--dsn", dsn]
        )
        assert done.exit_code == 1
        assert "s3cret" not in done.output
        assert "can not be reached" in done.output
        with pytest.raises(SourceError) as caught:
            open_source(
                dsn if "://" in dsn else "postgresql:", sql="select 1 as a", **({} if "://" in dsn else {"dsn": dsn})
            )
        assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_a_query_that_fails_says_why(address: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the query fails: .*nowhere"):
        open_source(address, sql="select * from nowhere")
    with pytest.raises(ValueError, match="column 'n' is of type"):
        open_source(address, sql="select n from wide")
    late = "select u, i, 1 / (u - 500) as x from clicks"
    with pytest.raises(SourceError, match="division by zero"):
        ss.convert(address, tmp_path / "a.zarr", sql=late, row="u", feature="i", value="x")
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("n", [200_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_memory_is_flat(address: str, tmp_path: Path, n: int) -> None:
    code = """
    import sys, shutil
    from sparsestore.convert import convert
    def run(n):
        query = f"select (k % 5000)::int u, (k % 700)::int i, 1::real x from generate_series(1, {n}) k"
        convert(sys.argv[1], sys.argv[2], sql=query, row="u", feature="i", value="x", max_bytes="32MiB", progress=False)
        shutil.rmtree(sys.argv[2])
    run(1000)
    def work():
        run(int(sys.argv[3]))
    """
    assert peak_of(code, address, tmp_path / "a.zarr", n) <= (32 << 20) + (32 << 20)


@pytest.mark.large
def test_twenty_million_triples_stay_within_a_gibibyte(address: str, tmp_path: Path) -> None:
    query = "select ((k * 7919) % 2000000)::int u, ((k * 104729 + k / 2000000) % 100000)::int i, (k % 9 + 1)::real x"
    code = f"""
    import sys
    import sparsestore as ss
    def run(n):
        sql = f"{query} from generate_series(1::bigint, {{n}}) k"
        given = dict(row="u", feature="i", value="x", max_bytes="1GiB", progress=False)
        return ss.convert(sys.argv[1], sys.argv[2], sql=sql, overwrite=True, **given)
    run(1000)
    def work():
        run(20_000_000)
    """
    assert peak_of(code, address, tmp_path / "a.zarr") <= 1 << 30
    store, k = ss.open(tmp_path / "a.zarr"), np.arange(1, 20_000_001)
    rows, features = k * 7919 % 2_000_000, (k * 104_729 + k // 2_000_000) % 100_000
    wanted = sparse.coo_array((k % 9 + 1, (rows, features)), shape=(2_000_000, 100_000)).tocsr()
    assert wanted.nnz == 20_000_000
    for start in range(0, 2_000_000, 500_000):
        found, part = store[start : start + 500_000], wanted[start : start + 500_000]
        part.sort_indices()
        np.testing.assert_array_equal(found.indptr, part.indptr)
        np.testing.assert_array_equal(found.indices, part.indices)
        np.testing.assert_array_equal(found.data, part.data)
