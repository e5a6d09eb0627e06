from __future__ import annotations

import copy
import datetime
import gc
import multiprocessing
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_bridge import CASES, INPUTS, Decoded, check_bridge, check_inputs
from fakes import FakeReader, make_loader, random_matrix

torch = pytest.importorskip("torch", reason="needs PyTorch, the extra torch")

from torch.utils.data import DataLoader  # noqa: E402

import sparsestore as ss  # noqa: E402
from sparsestore.bridges.torch import _dealt, dataset  # noqa: E402

# more workers than the machine has cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

ROOT = Path(__file__).parents[1]
N_ROWS, N_FEATURES = 500, 83
X = random_matrix(N_ROWS, N_FEATURES, 0.1)
Y = (np.asarray(X @ np.random.default_rng(1).normal(size=N_FEATURES)) > 0).astype(np.int64)
COLUMNS = {"y": Y, "row": np.arange(N_ROWS), "sample_weight": np.random.default_rng(2).random(N_ROWS)}
FORMATS = pytest.mark.parametrize("format", ["csr", "coo"])


def reader(**options: Any) -> FakeReader:
    return FakeReader(X, COLUMNS, **options)


def rows_of(**options: Any) -> Any:
    """A dataset whose y is the number of each row."""
    return dataset(make_loader(reader(), columns=("row",), shuffle=True, **options))


def numbers(elements: Any) -> list[list[int]]:
    return [y.tolist() for _, y in elements]


def epochs(n: int, **options: Any) -> list[list[list[int]]]:
    """Row numbers of each batch of some epochs, as the loader has them."""
    loader = make_loader(reader(), columns=("row",), shuffle=True, **options)
    return [[batch.y.tolist() for batch in loader] for _ in range(n)]


def decode(element: Any) -> Decoded:
    x, y, weight = (*element, None, None)[:3] if isinstance(element, (tuple, list)) else (element, None, None)
    x = x if x.layout == torch.strided else x.to_dense()
    y = {name: t.numpy() for name, t in y.items()} if isinstance(y, dict) else y if y is None else y.numpy()
    return x.numpy(), y, None if weight is None else weight.numpy()


@pytest.mark.parametrize("case", CASES)
def test_elements_are_the_batches_of_the_loader(case: str) -> None:
    check_bridge(dataset, decode, CASES[case])


@pytest.mark.parametrize("case", ["shuffled", "features", "y and weights"])
def test_coo_elements_are_the_batches_of_the_loader(case: str) -> None:
    check_bridge(lambda loader: dataset(loader, format="coo"), decode, CASES[case])


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_beside_the_matrix_have_the_same_rows(case: str, tmp_path: Path) -> None:
    check_inputs(lambda store, **given: store.to_torch(32, **given), cells, tmp_path, **INPUTS[case])


def test_inputs_of_workers_have_the_same_rows(tmp_path: Path) -> None:
    def through_workers(store: Any, **given: Any) -> Any:
        return DataLoader(store.to_torch(32, **given), batch_size=None, num_workers=2, multiprocessing_context="fork")

    check_inputs(through_workers, cells, tmp_path, in_order=False, window_rows=64)


def cells(x: Any) -> Any:
    return (x if x.layout == torch.strided else x.to_dense()).numpy()


def test_through_a_data_loader_they_are_the_same() -> None:
    check_bridge(lambda loader: DataLoader(dataset(loader), batch_size=None), decode, CASES["several outputs"])


@FORMATS
def test_sparse_x_is_canonical(format: str) -> None:
    for x in dataset(make_loader(reader(), shuffle=True), format=format):
        assert x.layout == {"csr": torch.sparse_csr, "coo": torch.sparse_coo}[format]
        # checks again all that the bridge says of it
        if format == "csr":
            parts = x.crow_indices(), x.col_indices(), x.values()
            torch.sparse_csr_tensor(*parts, x.shape, check_invariants=True)
            assert {part.dtype for part in parts[:2]} == {torch.int32}
        else:
            assert x.is_coalesced()
            again = torch.sparse_coo_tensor(x.indices(), x.values(), x.shape, check_invariants=True).coalesce()
            assert torch.equal(again.indices(), x.indices())


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "bool"])
def test_x_has_the_dtype_asked_for(dtype: str) -> None:
    x = next(iter(dataset(make_loader(FakeReader((X * 10).astype(np.int8)), dtype=dtype))))
    assert np.array_equal(x.to_dense().numpy(), (X * 10).astype(np.int8)[:32].toarray().astype(dtype))


def test_what_is_kept_never_changes_and_may_be_written_to() -> None:
    ds = dataset(make_loader(reader(), columns=("row",), layout="dense", batch_size=64, window_rows=128))
    for _ in range(2):
        kept = list(ds)
        for x, y in kept[::2]:
            x.neg_()
            y.neg_()
        for k, (x, y) in enumerate(kept):
            expected = np.arange(64 * k, min(64 * (k + 1), N_ROWS))
            assert np.array_equal(abs(y.numpy()), expected)
            assert np.array_equal(abs(x.numpy()), X[expected].toarray())


def test_an_abandoned_iterator_lets_go(tmp_path: Path) -> None:
    """The fixtures of conftest look for files and threads after the test."""
    store = ss.convert(X, tmp_path / "x.zarr", columns={"y": Y})
    x, y = next(iter(store.to_torch(8, window_rows=64)))
    assert np.array_equal(x.to_dense().numpy(), X[:8].toarray())
    assert np.array_equal(y.numpy(), Y[:8])
    del store, x, y
    gc.collect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csc"}, "format is 'csc', expected one of 'csr', 'coo'"),
        ({"columns": ("sample_weight",)}, "columns has 'sample_weight' and nothing to weigh: add 'y'"),
        ({"columns": ("name",)}, "column 'name' holds texts, and PyTorch has no tensors of texts"),
        ({"layout": "csr"}, "layout is 'csr', expected one of 'sparse', 'dense'"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    source = FakeReader(X, {**COLUMNS, "name": np.array(["é"] * N_ROWS, object)})
    format = options.pop("format", "csr")
    with pytest.raises(ValueError, match=message):
        dataset(make_loader(source, **options), format=format)


def test_missing_values_are_refused_by_name() -> None:
    source = reader()
    source.column = lambda _, rows: np.ma.MaskedArray(Y[rows], rows < 3)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="column 'y' lacks 3 of"):
        list(dataset(make_loader(source, columns=("y",))))


# ---- epochs and workers


def test_every_iteration_is_the_next_epoch_and_two_at_once_are_their_own() -> None:
    expected, ds = epochs(4), rows_of()
    assert len(ds) == 16
    assert [numbers(ds), numbers(ds)] == expected[:2]
    both = list(zip(ds, ds, strict=True))
    assert numbers(a for a, _ in both) == expected[2]
    assert numbers(b for _, b in both) == expected[3]


def loader_of(ds: Any, n: int, **options: Any) -> Any:
    return DataLoader(ds, batch_size=None, num_workers=n, **options)


@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent"])
@pytest.mark.parametrize("n", [1, 3])
def test_forked_workers_read_each_batch_once_and_all_the_same_epoch(n: int, persistent: bool) -> None:
    expected, ds = epochs(4, batch_size=16, window_rows=32), rows_of(batch_size=16, window_rows=32)
    batches = loader_of(ds, n, persistent_workers=persistent, multiprocessing_context="fork")
    assert len(batches) == len(ds) == 32
    assert numbers(ds) == expected[0]  # here, before any worker
    for epoch in (1, 2):
        torch.manual_seed(0)  # workers of both epochs get the same seed
        assert sorted(numbers(batches)) == sorted(expected[epoch])
    assert ds.state_dict()["epoch"] == 2
    assert ds.state_dict(steps=32)["epoch"] == 3
    del batches
    assert numbers(ds) == expected[3]


@FORMATS
def test_tensors_of_workers_are_whole(format: str) -> None:
    columns = ("row", "sample_weight")
    ds = dataset(make_loader(reader(), columns=columns, shuffle=True), format=format)
    for x, row, weight in loader_of(ds, 2, multiprocessing_context="fork"):
        assert x.layout == {"csr": torch.sparse_csr, "coo": torch.sparse_coo}[format]
        assert np.array_equal(x.to_dense().numpy(), X[row.numpy()].toarray())
        assert np.array_equal(weight.numpy(), COLUMNS["sample_weight"][row.numpy()])


@pytest.mark.slow
def test_spawned_workers_go_on_from_the_epoch_before() -> None:
    expected, ds = epochs(2), rows_of()
    assert numbers(ds) == expected[0]
    batches = loader_of(ds, 2, multiprocessing_context="spawn")
    assert sorted(numbers(batches)) == sorted(expected[1])
    assert ds.state_dict(steps=len(ds))["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent"])
def test_spawned_workers_read_each_batch_once_and_all_the_same_epoch(persistent: bool) -> None:
    expected, ds = epochs(3), rows_of()
    batches = loader_of(ds, 2, persistent_workers=persistent, multiprocessing_context="spawn")
    for epoch in range(3):
        assert sorted(numbers(batches)) == sorted(expected[epoch])


def test_iterations_of_workers_that_run_at_once_are_epochs_of_their_own() -> None:
    expected, ds = epochs(2), rows_of()
    batches = loader_of(ds, 2, multiprocessing_context="fork")
    both = list(zip(batches, batches, strict=True))
    found = [sorted(numbers(a for a, _ in both)), sorted(numbers(b for _, b in both))]
    assert sorted(found) == sorted(map(sorted, expected))


def test_an_epoch_that_was_broken_off_is_over() -> None:
    expected, ds = epochs(3), rows_of()
    batches = loader_of(ds, 2, multiprocessing_context="fork")
    for _ in range(2):
        for _ in batches:
            break
    assert sorted(numbers(batches)) == sorted(expected[2])


def test_more_workers_than_batches_have_nothing_to_do() -> None:
    ds = rows_of(batch_size=256)
    batches = loader_of(ds, 4, multiprocessing_context="fork")
    assert len(ds) == 2
    assert sorted(numbers(batches)) == sorted(epochs(1, batch_size=256)[0])


def test_set_epoch_reaches_workers_that_live() -> None:
    expected, ds = epochs(6), rows_of()
    batches = loader_of(ds, 2, persistent_workers=True, multiprocessing_context="fork")
    assert sorted(numbers(batches)) == sorted(expected[0])
    ds.set_epoch(4)
    assert sorted(numbers(batches)) == sorted(expected[4])
    assert sorted(numbers(batches)) == sorted(expected[5])
    with pytest.raises(ValueError, match="epoch of the state is -1, expected a whole number from 0"):
        ds.set_epoch(-1)
    ds.set_epoch(np.int64(3))
    assert ds.state_dict()["epoch"] == 3
    assert type(ds.state_dict()["epoch"]) is int


def test_a_copy_counts_for_itself() -> None:
    expected, ds = epochs(3), rows_of()
    assert numbers(ds) == expected[0]
    other = copy.deepcopy(ds)
    assert [numbers(other), numbers(other)] == expected[1:]
    assert numbers(ds) == expected[1]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_state_goes_on_at_its_batch(n: int) -> None:
    def batches(ds: Any) -> Any:
        return loader_of(ds, n, multiprocessing_context="fork" if n else None)

    ds = rows_of(batch_size=16, window_rows=64)
    first, whole = numbers(batches(ds)), numbers(batches(ds))
    del first
    ds = rows_of(batch_size=16, window_rows=64)
    ds.set_epoch(1)
    iterator: Iterator[Any] = iter(batches(ds))
    for _ in range(13):
        next(iterator)
    state = ds.state_dict(steps=13 if n else 0)
    assert (state["epoch"], state["batch"]) == (1, 13)
    other = rows_of(batch_size=16, window_rows=64, seed=7)
    other.load_state_dict(state)
    again = batches(other)
    assert numbers(again) == whole[13:]
    assert sorted(numbers(again)) == sorted(epochs(3, batch_size=16, window_rows=64)[2])


def test_steps_without_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 3, expected none without workers"):
        rows_of().state_dict(steps=3)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [0, 2, 5], [4, 1], [0, 0], [7]], ids=str)
def test_batches_dealt_in_turn_are_counted_right(lengths: list[int]) -> None:
    done = [0] * len(lengths)
    order = sorted((k, worker) for worker, length in enumerate(lengths) for k in range(length))
    assert _dealt(lengths, 0) == done
    for n, (_, worker) in enumerate(order, 1):
        done[worker] += 1
        assert _dealt(lengths, n) == done


# ---- several processes


def train(rank: int, port: int, path: str, found: Any) -> None:
    """What one process of a group of two reads."""
    wait = datetime.timedelta(seconds=60)
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=wait)
    view = ss.open(path)
    with pytest.raises(ValueError, match="shuffle=True without a seed in a group of 2 processes"):
        view.to_torch(10, shuffle=True)
    whole = view.to_torch(10, partition=0, n_partitions=1)
    ds = view.to_torch(10, shuffle=True, seed=3, window_rows=40)
    batches = loader_of(ds, 2, multiprocessing_context="fork")
    found.put((rank, len(ds), len(whole), [numbers(batches), numbers(batches)]))
    group.destroy_process_group()


def test_processes_of_a_group_and_their_workers_share_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    store = ss.convert(X, tmp_path / "x.zarr", columns={"y": np.arange(N_ROWS)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    started = [context.Process(target=train, args=(rank, port, store.path, found)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    (_, n, whole, first), (_, _, _, second) = sorted(found.get() for _ in started)
    assert (n, whole) == (25, 50)
    loader = store.loader(10, shuffle=True, seed=3, window_rows=40)
    for epoch in range(2):
        assert sorted(first[epoch] + second[epoch]) == sorted(batch.y.tolist() for batch in loader)
        assert len(first[epoch]) == len(second[epoch]) == 25


# ---- training


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_training_gets_the_loss_of_a_model_in_numpy(layout: str) -> None:
    """Logistic regression by plain gradient descent, beside the same in float64."""
    ds = dataset(make_loader(reader(), columns=("y",), shuffle=True, layout=layout))
    loader = make_loader(reader(), columns=("y",), shuffle=True, layout="dense", dtype="float64")
    model = torch.nn.Linear(N_FEATURES, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    kernel, bias = np.zeros(N_FEATURES), 0.0
    for _ in range(2):
        for (x, y), batch in zip(ds, loader, strict=True):
            out = model(x).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(out, y.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            p = 1 / (1 + np.exp(-(batch.x @ kernel + bias)))
            expected = -np.mean(batch.y * np.log(p) + (1 - batch.y) * np.log(1 - p))
            kernel -= 0.5 * batch.x.T @ (p - batch.y) / len(p)
            bias -= 0.5 * float(np.mean(p - batch.y))
            assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_missing_framework_is_named_with_its_extra() -> None:
    script = """
        import sys
        sys.modules["torch"] = None
        import numpy as np, sparsestore as ss, tempfile
        store = ss.convert(np.eye(3), tempfile.mkdtemp() + "/eye.zarr")
        try:
            store.to_torch()
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == 'to_torch needs PyTorch: pip install "sparsestore[torch]"'
