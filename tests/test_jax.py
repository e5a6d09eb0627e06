from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from check_bridge import CASES, INPUTS, Decoded, check_bridge, check_inputs
from fakes import FakeReader, make_loader, random_matrix

jax = pytest.importorskip("jax", reason="needs JAX, the extra jax")

import jax.numpy as jnp  # noqa: E402
from jax.experimental.sparse import BCOO  # noqa: E402

import sparsestore as ss  # noqa: E402
from sparsestore.bridges.jax import dataset  # noqa: E402

ROOT = Path(__file__).parents[1]
N_ROWS, N_FEATURES = 500, 83
X = random_matrix(N_ROWS, N_FEATURES, 0.1)
Y = (np.asarray(X @ np.random.default_rng(1).normal(size=N_FEATURES)) > 0).astype(np.int64)
COLUMNS = {"y": Y, "row": np.arange(N_ROWS), "sample_weight": np.random.default_rng(2).random(N_ROWS)}


def reader(**options: Any) -> FakeReader:
    return FakeReader(X, COLUMNS, **options)


@pytest.fixture
def wide() -> Iterator[None]:
    """Numbers of 64 bits, for the whole process."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def decode(element: Any) -> Decoded:
    x, y, weight = (*element, None, None)[:3] if isinstance(element, tuple) else (element, None, None)
    y = {name: np.asarray(a) for name, a in y.items()} if isinstance(y, dict) else y if y is None else np.asarray(y)
    if isinstance(x, BCOO):
        # beside `todense`: entries in order, each once, and after them places that are none, with no value
        places, values, n = np.asarray(x.indices), np.asarray(x.data), int((np.asarray(x.indices)[:, 0] < len(x)).sum())
        flat = places[:n].astype(np.int64) @ [x.shape[1], 1]
        assert (np.diff(flat) > 0).all()
        assert (places[n:] == x.shape).all()
        assert not values[n:].any()
        if n == 0 or len(x) > 1:
            x = x.todense()
        else:  # which takes JAX long, where there are a thousand of them
            x, found = np.zeros(x.shape, x.dtype), x
            x[tuple(np.asarray(found.indices)[:n].T)] = np.asarray(found.data)[:n]
    return np.asarray(x), y, None if weight is None else np.asarray(weight)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("case", CASES)
def test_elements_are_the_batches_of_the_loader(case: str) -> None:
    check_bridge(dataset, decode, CASES[case])


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_beside_the_matrix_have_the_same_rows(case: str, tmp_path: Path) -> None:
    def cells(x: Any) -> Any:
        return np.asarray(x.todense() if isinstance(x, BCOO) else x)

    check_inputs(lambda store, **given: store.to_jax(32, **given), cells, tmp_path, **INPUTS[case])


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_without_numbers_of_64_bits_columns_are_narrowed(layout: str) -> None:
    batches = dataset(make_loader(reader(), columns=("y", "sample_weight"), layout=layout))
    loader = make_loader(reader(), columns=("y", "sample_weight"), layout="dense")
    for (x, y, weight), batch in zip(batches, loader, strict=True):
        assert (x.dtype, y.dtype, weight.dtype) == (np.float32, np.int32, np.float32)
        assert np.array_equal(decode(x)[0], batch.x)
        assert np.array_equal(y, batch.y)
        assert np.array_equal(weight, batch.sample_weight.astype(np.float32))


def test_numbers_that_would_not_survive_are_refused() -> None:
    large = FakeReader(X, {"y": Y + 2**40})
    with pytest.raises(ValueError, match="column 'y' has whole numbers outside of -2147483648 to 2147483647"):
        next(iter(dataset(make_loader(large, columns=("y",)))))
    with pytest.raises(ValueError, match=r"dtype is float64, and JAX has no numbers of 64 bits.*take dtype='float32'"):
        iter(dataset(make_loader(reader(), dtype="float64")))


WIDE = scipy.sparse.csr_array(
    (np.ones(3, np.float32), np.array([5, 2**31 + 7, 2**31 + 50]), np.arange(4)), shape=(3, 2**31 + 100)
)


@pytest.mark.parametrize("nse", [None, 3], ids=["with padding", "without"])
def test_feature_numbers_that_would_not_survive_are_refused(nse: int | None, tmp_path: Path) -> None:
    store = ss.convert(WIDE, tmp_path / "a.zarr", progress=False)
    with pytest.raises(ValueError, match=r"x has 2147483748 features, more than 2147483647, .*'jax_enable_x64', True"):
        next(iter(store.to_jax(3, nse=nse)))
    few = store.select(features=[2**31 + 7, 5])
    x = next(iter(few.to_jax(3)))
    assert np.asarray(x.todense()).tolist() == [[0, 1], [1, 0], [0, 0]]
    with pytest.raises(ValueError, match="x has 2147483748 features"):
        next(iter(few.to_jax(3, inputs={"wide": store})))


@pytest.mark.usefixtures("wide")
def test_feature_numbers_of_64_bits_survive_where_jax_has_them(tmp_path: Path) -> None:
    x = next(iter(ss.convert(WIDE, tmp_path / "a.zarr", progress=False).to_jax(3)))
    assert np.asarray(x.indices)[:3].tolist() == [[0, 5], [1, 2**31 + 7], [2, 2**31 + 50]]


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint16"])
@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_x_has_the_dtype_asked_for(dtype: str, layout: str) -> None:
    whole = (X * 10).astype(np.int8)
    x = decode(next(iter(dataset(make_loader(FakeReader(whole), dtype=dtype, layout=layout)))))[0]
    assert x.dtype == dtype
    assert np.array_equal(x, whole[:32].toarray().astype(dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("sample_weight",)}, "columns has 'sample_weight' and nothing to weigh: add 'y'"),
        ({"columns": ("name",)}, "column 'name' holds texts, and JAX has no tensors of texts"),
        ({"nse": 0}, "nse is 0, expected an integer of at least 1"),
        ({"nse": 2.5}, "nse is 2.5, expected an integer of at least 1"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    source = FakeReader(X, {**COLUMNS, "name": np.array(["é"] * N_ROWS, object)})
    nse = options.pop("nse", None)
    with pytest.raises(ValueError, match=message):
        dataset(make_loader(source, **options), nse=nse)


# ---- padding and compiling


def lengths_of(kind: str, n: int) -> Any:
    rng = np.random.default_rng(0)
    return {
        "alike": np.full(n, 10),
        "log-normal": np.minimum(rng.lognormal(2, 1.2, n).astype(int), 999),
        "ascending": np.arange(n) * 60 // n,
        "one in a hundred": np.where(np.arange(n) % 100 == 99, 900, 1),
        "none": np.zeros(n, int),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "shuffle"),
    [("alike", False), ("none", False), ("ascending", False)]
    + [(kind, shuffle) for kind in ("log-normal", "one in a hundred") for shuffle in (False, True)],
)
def test_a_step_is_compiled_at_most_four_times(kind: str, shuffle: bool) -> None:
    n, n_features = 3000, 1000
    lengths = lengths_of(kind, n)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.concatenate([np.arange(k) for k in lengths])
    x = scipy.sparse.csr_array((np.ones(len(indices), np.float32), indices, starts), (n, n_features))
    compiled = []

    @jax.jit
    def step(kernel: Any, x: Any, y: Any) -> Any:
        compiled.append(x.nse)
        return kernel - 0.1 * jax.grad(lambda kernel: jnp.mean((x @ kernel - y) ** 2))(kernel)

    source = FakeReader(x, {"y": np.arange(n, dtype=np.float32)})
    batches = dataset(make_loader(source, columns=("y",), shuffle=shuffle, batch_size=64, window_rows=1024))
    kernel = jnp.zeros(n_features)
    for _ in range(3):
        for x, y in batches:
            kernel = step(kernel, x, y)
    assert len(compiled) <= 4
    assert max(compiled) <= 3 * max(int(lengths.sum()) * 64 // n, 64) or kind == "one in a hundred"


def test_a_number_of_places_that_was_asked_for_is_kept() -> None:
    assert {x.nse for x in dataset(make_loader(reader()), nse=400)} == {400}
    with pytest.raises(ValueError, match=r"nse is 100 and a batch has \d+ entries: take a larger nse"):
        next(iter(dataset(make_loader(reader()), nse=100)))


# ---- epochs


def test_every_iteration_is_the_next_epoch_and_two_at_once_are_their_own() -> None:
    plain = make_loader(reader(), columns=("row",), shuffle=True)
    expected = [[batch.y.tolist() for batch in plain] for _ in range(4)]
    batches = dataset(make_loader(reader(), columns=("row",), shuffle=True))

    def rows(elements: Any) -> list[list[int]]:
        return [y.tolist() for _, y in elements]

    assert len(batches) == 16
    assert [rows(batches), rows(batches)] == expected[:2]
    both = list(zip(batches, batches, strict=True))
    assert [rows(a for a, _ in both), rows(b for _, b in both)] == expected[2:]


def test_a_state_goes_on_at_its_batch() -> None:
    whole = [y.tolist() for _, y in dataset(make_loader(reader(), columns=("row",), shuffle=True))]
    batches = dataset(make_loader(reader(), columns=("row",), shuffle=True))
    iterator = iter(batches)
    for _ in range(5):
        next(iterator)
    other = dataset(make_loader(reader(), columns=("row",), shuffle=True, seed=9))
    other.load_state_dict(batches.state_dict())
    assert [y.tolist() for _, y in other] == whole[5:]


def test_an_abandoned_iterator_lets_go(tmp_path: Path) -> None:
    """The fixtures of conftest look for files and threads after the test."""
    store = ss.convert(X, tmp_path / "x.zarr", columns={"y": Y})
    for layout in ("sparse", "dense"):
        iterator = iter(store.to_jax(8, window_rows=64, layout=layout))
        assert np.array_equal(decode(next(iterator)[0])[0], X[:8].toarray())
    del store, iterator
    gc.collect()


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_batches_that_are_kept_never_change(layout: str) -> None:
    """Large enough for memory that is used again; JAX may share it."""
    x = random_matrix(6000, 301, 0.2)
    source = FakeReader(x, {"row": np.arange(6000)})
    options = {"batch_size": 256, "layout": layout, "columns": ("row",), "shuffle": True, "window_rows": 1024}
    kept = [element for k, element in enumerate(dataset(make_loader(source, **options))) if k % 3 == 0]
    for element in kept:
        found, rows, _ = decode(element)
        assert np.array_equal(found, x[rows].toarray())


# ---- training


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_training_gets_the_loss_of_a_model_in_numpy(layout: str) -> None:
    def loss(kernel: Any, x: Any, y: Any) -> Any:
        out = x @ kernel
        return jnp.mean(jnp.logaddexp(0, out) - y * out)

    step = jax.jit(jax.value_and_grad(loss))
    batches = dataset(make_loader(reader(), columns=("y",), shuffle=True, layout=layout))
    loader = make_loader(reader(), columns=("y",), shuffle=True, layout="dense", dtype="float64")
    kernel, plain = jnp.zeros(N_FEATURES), np.zeros(N_FEATURES)
    for _ in range(2):
        for (x, y), batch in zip(batches, loader, strict=True):
            value, gradient = step(kernel, x, y)
            kernel = kernel - 0.5 * gradient
            p = 1 / (1 + np.exp(-(batch.x @ plain)))
            expected = -np.mean(batch.y * np.log(p) + (1 - batch.y) * np.log(1 - p))
            plain -= 0.5 * batch.x.T @ (p - batch.y) / len(p)
            assert float(value) == pytest.approx(expected, rel=1e-4)


def test_a_missing_framework_is_named_with_its_extra() -> None:
    script = """
        import sys
        sys.modules["jax"] = None
        import numpy as np, sparsestore as ss, tempfile
        store = ss.convert(np.eye(3), tempfile.mkdtemp() + "/eye.zarr")
        try:
            store.to_jax()
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == 'to_jax needs JAX: pip install "sparsestore[jax]"'
