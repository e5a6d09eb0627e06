"""Training on several devices, and by several workers, against training on one."""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import sparsestore as ss  # noqa: E402
from sparsestore.keras import (  # noqa: E402
    FlatToSparse,
    LazyAdagrad,
    LazyAdam,
    LazyFTRL,
    LazyMomentum,
    Resume,
    SparseDense,
    SparseEmbeddingBag,
    distributable,
    distributed,
    flat_input,
)

# Keras 3.15 asks TensorFlow 2.21 for arrays in the way of numpy 1
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")

ROOT = Path(__file__).parents[1]
N, WIDTH, BATCH = 240, 30, 40
SHUFFLED: dict[str, Any] = {"shuffle": True, "seed": 3}


def network(optimizer: Any, *, flat: bool) -> Any:
    """The same model in every process; with `flat` its input is what `distributed` gives."""
    keras.utils.set_random_seed(0)
    inputs, x = flat_input(30) if flat else 2 * (keras.Input((30,), sparse=True),)
    both = keras.layers.Concatenate()([SparseDense(4, "relu")(x), SparseEmbeddingBag(3, "mean")(x)])
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(both))
    model.compile(optimizer, "binary_crossentropy", weighted_metrics=["accuracy"])
    return model


def matrix(n: int = N) -> Any:
    """Rows of very different lengths, the first and the last empty, and two features that no row has."""
    rng = np.random.default_rng(0)
    x = (rng.random((n, WIDTH)) < rng.random((n, 1)) * 0.3) * (1 + rng.random((n, WIDTH)))
    x[[0, -1]] = 0
    x[:, [5, WIDTH - 1]] = 0
    return sp.csr_array(x.astype(np.float32))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    x = matrix()
    y = x.sum(axis=1) > 3
    return ss.convert(
        x, tmp_path_factory.mktemp("distribution") / "a.zarr", columns={"y": y, "row": np.arange(N), "was": ~y}
    )


@pytest.fixture(scope="module")
def path(store: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the store, for other processes."""
    return str(tmp_path_factory.getbasetemp() / "distribution0" / "a.zarr")


# ---- several devices of one process: TensorFlow divides a processor before it is used, so in a process of its own

AGAIN = "SPARSESTORE_TESTS_OF_TWO_DEVICES"
TWO = AGAIN in os.environ
two_devices = pytest.mark.skipif(not TWO, reason="runs in a process whose processor is two devices")
if TWO:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


def again(marks: str) -> None:
    """Run the tests of this file that need two devices, in a process of their own."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, "-k", "not process", __file__],
        env={**os.environ, AGAIN: "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(TWO, reason="is that process")
@pytest.mark.slow
def test_two_devices_in_a_process_of_their_own() -> None:
    again("not slow")


@pytest.mark.slow
@pytest.mark.skipif(TWO, reason="is that process")
def test_every_optimizer_on_two_devices_in_a_process_of_its_own() -> None:
    again("slow")


@pytest.fixture(scope="module")
def strategy() -> Any:
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def trained(store: Any, optimizer: Any, strategy: Any = None, epochs: int = 2, **options: Any) -> Any:
    """A model and its losses; on one device where no strategy is given."""
    if strategy is None:
        model = network(optimizer(), flat=False)
        ds = store.to_tf(BATCH, columns="y", **{**SHUFFLED, **options})
    else:
        with strategy.scope():
            model = distributable(network(optimizer(), flat=True))
        ds = distributed(store, BATCH, strategy, columns="y", **{**SHUFFLED, **options})
    return model, model.fit(ds, epochs=epochs, verbose=0).history


def check_alike(model: Any, history: Any, other: Any, expected: Any) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=0, atol=1e-5)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


def check_replicas(strategy: Any, variables: Any) -> None:
    """That all replicas have the same values."""
    for variable in variables:
        first, second = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


@two_devices
@pytest.mark.parametrize("options", [{}, SHUFFLED], ids=["in order", "shuffled"])
def test_each_step_is_the_batch_of_one_device(store: Any, strategy: Any, options: dict[str, Any]) -> None:
    ds = distributed(store, BATCH, strategy, columns="row", **options)
    rows = [np.concatenate(strategy.experimental_local_results(y)) for _, y in ds]
    assert len(rows) == ds.cardinality == len(ds.loader) == N // BATCH
    expected = [batch.row_ids for batch in store.loader(BATCH, **options)]
    np.testing.assert_array_equal(rows, expected)
    assert sorted(np.concatenate(rows)) == list(range(N))


@two_devices
def test_a_short_last_batch_is_cut_evenly_and_no_row_is_lost(store: Any, strategy: Any) -> None:
    ds = distributed(store.select(rows=slice(0, 201)), BATCH, strategy, columns="row")
    parts = [strategy.experimental_local_results(y) for _, y in ds]
    assert [[len(part) for part in step] for step in parts] == [[20, 20]] * 5 + [[0, 1]]
    assert np.concatenate([np.concatenate(step) for step in parts]).tolist() == list(range(201))
    whole = distributed(store.select(rows=slice(0, 201)), BATCH, strategy, drop_remainder=True)
    assert whole.cardinality == len(list(whole)) == 5


@two_devices
@pytest.mark.parametrize("optimizer", [LazyAdam, pytest.param(keras.optimizers.SGD, id="SGD", marks=pytest.mark.slow)])
def test_training_on_two_devices_is_that_on_one(store: Any, strategy: Any, optimizer: Any) -> None:
    model, history = trained(store, optimizer, strategy)
    check_alike(model, history, *trained(store, optimizer))
    check_replicas(strategy, [*model.trainable_variables, *model.optimizer.variables[2:]])


@two_devices
@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [LazyAdagrad, LazyMomentum, LazyFTRL, pytest.param(lambda: LazyAdam(0.1, amsgrad=True), id="amsgrad")]
)
def test_training_by_every_lazy_optimizer_is_that_on_one_device(store: Any, strategy: Any, optimizer: Any) -> None:
    model, history = trained(store, optimizer, strategy)
    check_alike(model, history, *trained(store, optimizer))
    check_replicas(strategy, [*model.trainable_variables, *model.optimizer.variables[2:]])


@two_devices
def test_padding_and_rows_of_other_replicas_touch_no_feature(store: Any, strategy: Any) -> None:
    """Parts of a batch differ in their entries, so one is padded; features that no row has keep their weights."""
    x = store.select(features=[5, *range(1, WIDTH)])  # the first feature, whose number padding has, is in no row
    with strategy.scope():
        model = network(LazyAdam(0.1), flat=True)
    before = model.get_weights()
    model.fit(distributed(x, BATCH, strategy, columns="y"), epochs=1, verbose=0)
    moments = [v.numpy() for v in model.optimizer.variables if v.shape == (WIDTH, 4)]
    assert len(moments) == 2
    for table in moments:
        assert not table[[0, 5, WIDTH - 1]].any()
        assert table[1].any()
    kernels = [(one, two) for one, two in zip(before, model.get_weights(), strict=True) if len(one) == WIDTH]
    assert len(kernels) == 2
    for one, two in kernels:
        np.testing.assert_array_equal(one[[0, 5, WIDTH - 1]], two[[0, 5, WIDTH - 1]])
        assert (one[1] != two[1]).any()


@two_devices
@pytest.mark.slow
def test_fit_of_keras_alone_trains_an_epoch_later(store: Any, strategy: Any) -> None:
    """Keras looks at a first batch; the model is not distributable, and so the epochs are 1 and 2."""
    with strategy.scope():
        model = network(LazyAdam(), flat=True)
    ds = distributed(store, BATCH, strategy, columns="y", **SHUFFLED)
    history = model.fit(ds, epochs=2, verbose=0).history
    alone, one_device = network(LazyAdam(), flat=False), store.to_tf(BATCH, columns="y", **SHUFFLED)
    one_device.loader.begin()
    check_alike(model, history, alone, alone.fit(one_device, epochs=2, verbose=0).history)
    assert ds.loader.following == (3, 0)


@two_devices
@pytest.mark.slow
def test_evaluate_and_predict_see_every_row_in_order(store: Any, strategy: Any) -> None:
    model, history = trained(store, LazyAdam, strategy, epochs=1)
    assert set(history) == {"loss", "accuracy"}
    alone = network(LazyAdam(), flat=False)
    alone.set_weights(model.get_weights())
    found = model.evaluate(distributed(store, 100, strategy, columns="y"), verbose=0)
    np.testing.assert_allclose(found, alone.evaluate(store.to_tf(100, columns="y"), verbose=0), atol=1e-5)
    found = model.predict(distributed(store, 100, strategy, columns=()), verbose=0)
    np.testing.assert_allclose(found, alone.predict(store.to_tf(100, columns=()), verbose=0), atol=1e-6)


@two_devices
@pytest.mark.slow
def test_a_training_on_two_devices_goes_on_at_any_batch(store: Any, strategy: Any, tmp_path: Path) -> None:
    class Interrupted(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
            if batch == 4:
                raise KeyboardInterrupt

    def run(*callbacks: Any) -> Any:
        with strategy.scope():
            model = distributable(network(LazyAdam(), flat=True))
        ds = distributed(store, BATCH, strategy, columns="y", **SHUFFLED)
        callbacks = (Resume(ds, tmp_path, save_freq=3), *callbacks)
        return model, model.fit(ds, epochs=2, verbose=0, callbacks=callbacks).history

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted())
    check_alike(*run(), *trained(store, LazyAdam, strategy))


@two_devices
def test_dense_rows_are_dealt_too(store: Any, strategy: Any) -> None:
    x, y = zip(*distributed(store, BATCH, strategy, columns="y", layout="dense"), strict=True)
    found = np.concatenate([np.concatenate(strategy.experimental_local_results(each)) for each in x])
    np.testing.assert_array_equal(found, matrix().toarray())
    assert strategy.experimental_local_results(y[0])[0].dtype == tf.uint8  # truth values have no mean


@two_devices
@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_training_with_several_inputs_is_that_on_one_device(store: Any, strategy: Any, layout: str) -> None:
    def made(*, flat: bool) -> Any:
        keras.utils.set_random_seed(0)
        if flat:
            (inputs, x), (others, words) = flat_input(WIDTH), flat_input(2, name="words")
        else:
            inputs, others = (
                keras.Input((width,), sparse=layout == "sparse", name=name)
                for name, width in (("x", WIDTH), ("words", 2))
            )
            x, words = inputs, others
        row, was = keras.Input((1,), name="row"), keras.Input((1,), name="was")
        hidden = [SparseDense(4, "relu")(x), SparseDense(2)(words), keras.layers.Rescaling(1 / N)(row), was]
        outputs = keras.layers.Dense(1, "sigmoid")(keras.layers.Concatenate()(hidden))
        model = keras.Model({"x": inputs, "words": others, "row": row, "was": was}, outputs)
        model.compile(LazyAdam(0.05), "binary_crossentropy")
        return model

    inputs = {"row": "row", "was": "was", "words": store.select(features=[3, 1])}
    options: dict[str, Any] = {"columns": "y", "layout": layout, "inputs": inputs, **SHUFFLED}
    alone = made(flat=False)
    expected = alone.fit(store.to_tf(BATCH, **options), epochs=2, verbose=0).history
    with strategy.scope():
        model = distributable(made(flat=layout == "sparse"))
    found = model.fit(distributed(store, BATCH, strategy, **options), epochs=2, verbose=0).history
    check_alike(model, found, alone, expected)


@two_devices
def test_a_batch_that_replicas_can_not_share_is_refused(store: Any, strategy: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 41, .* all 2 replicas: expected a multiple of 2"):
        distributed(store, 41, strategy)
    with strategy.scope():
        model = distributable(network("sgd", flat=True))
    with pytest.raises(ValueError, match=r"was made distributable, and got .*: take the data from distributed"):
        model.fit(store.to_tf(BATCH, columns="y"), verbose=0)


# ---- without a strategy


def test_without_a_strategy_elements_are_those_of_one_device(store: Any) -> None:
    ds = distributed(store, BATCH, columns="row")
    assert isinstance(ds, tf.data.Dataset)
    assert int(ds.cardinality()) == N // BATCH
    found = sp.vstack([sp.csr_array(tf.sparse.to_dense(FlatToSparse(WIDTH)(x)).numpy()) for x, _ in ds])
    np.testing.assert_array_equal(found.toarray(), matrix().toarray())


@pytest.mark.parametrize("layout", ["sparse", "dense"])
@pytest.mark.parametrize("columns", ["y", ()], ids=["with y", "alone"])
def test_inputs_beside_the_matrix_come_as_from_to_tf(store: Any, layout: str, columns: Any) -> None:
    inputs = {"row": "row", "was": "was", "words": store.select(features=[3, 1])}
    options: dict[str, Any] = {"inputs": inputs, "layout": layout, "columns": columns}
    elements = zip(distributed(store, BATCH, **options), store.to_tf(BATCH, **options), strict=True)
    for element, expected in elements:
        found, twin = (each[0] if columns else each for each in (element, expected))
        assert set(found) == {"x", *inputs}
        for name, width in (("x", WIDTH), ("words", 2)):
            one, other = found[name], twin[name]
            if layout == "sparse":
                one, other = tf.sparse.to_dense(FlatToSparse(width)(one)), tf.sparse.to_dense(other)
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(found["row"], twin["row"])
        np.testing.assert_array_equal(found["was"], tf.cast(twin["was"], tf.uint8))


def test_partitions_are_for_the_strategy_to_say(store: Any) -> None:
    with pytest.raises(ValueError, match="partition and n_partitions can not be given: the strategy says"):
        distributed(store, BATCH, partition=0, n_partitions=2)


def test_flat_to_sparse_drops_padding_and_is_made_again_from_a_file(tmp_path: Path) -> None:
    flat = {"counts": tf.constant([0, 2, 1], tf.int64), "indices": [1, 4, 2, 0, 0], "values": [1.0, 2.0, 3.0, 9.0, 9.0]}
    flat["indices"] = tf.constant(flat["indices"], tf.int64)
    flat["values"] = tf.constant(flat["values"])
    found = FlatToSparse(5)(flat)
    np.testing.assert_array_equal(tf.sparse.to_dense(found), [[0] * 5, [0, 1, 0, 0, 2], [0, 0, 3, 0, 0]])
    inputs, x = flat_input(5)
    assert x.sparse
    assert x.shape == (None, 5)
    model = keras.Model(inputs, SparseEmbeddingBag(2)(x))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(flat), model(flat))


def test_a_model_for_sparse_rows_is_used_as_it_is(store: Any) -> None:
    model = keras.Sequential([keras.Input((WIDTH,), sparse=True), SparseDense(1)])
    inputs, x = flat_input(WIDTH)
    flat = keras.Model(inputs, model(x))
    found = flat.predict(distributed(store, BATCH, columns=()), verbose=0)
    np.testing.assert_allclose(found, model.predict(store.to_tf(BATCH, columns=()), verbose=0), atol=1e-6)


def test_flat_to_sparse_says_what_it_takes() -> None:
    with pytest.raises(ValueError, match="n_features is 0, expected a whole number of at least 1"):
        FlatToSparse(0)
    with pytest.raises(
        ValueError, match=r"got \['x'\], expected a dict of counts, indices, values: take the data from"
    ):
        FlatToSparse(3)({"x": tf.zeros(3)})


# ---- two workers, each a process

WORKER = """
import json, os, sys
from typing import Any
import numpy as np, tensorflow as tf, keras
strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
import sparsestore as ss
from sparsestore.keras import *
exec(os.environ["MODEL"])
store, rank = ss.open(sys.argv[1]), json.loads(os.environ["TF_CONFIG"])["task"]["index"]
ds = distributed(store, 40, strategy, columns="row", shuffle=True, seed=3)
rows = [np.concatenate(strategy.experimental_local_results(y)) for _, y in ds]
try:
    distributed(store, 40, strategy, shuffle=True)
except ValueError as error:
    refused = str(error)
with strategy.scope():
    model = distributable(network(LazyAdam(0.05), flat=True))
ds = distributed(store, 40, strategy, columns="y", shuffle=True, seed=3)
history = model.fit(ds, epochs=2, verbose=0, validation_data=distributed(store, 80, strategy, columns="y")).history
np.savez(
    sys.argv[2] + f"/{rank}.npz", *model.get_weights(), rows=rows, steps=model.optimizer.iterations.numpy(),
    cardinality=ds.cardinality, refused=refused, **history,
)
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def started(program: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Two workers that know of each other."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={
                **os.environ,
                "MODEL": inspect.getsource(network),
                "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}),
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def ended(workers: list[subprocess.Popen[str]]) -> None:
    """Wait for workers that end well."""
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)


@pytest.mark.slow
def test_two_workers_in_a_process_each_train_as_one_that_is_fed_both_partitions(
    store: Any, path: str, tmp_path: Path
) -> None:
    ended(started(WORKER, path, str(tmp_path)))
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))

    # disjoint, every row once, equal steps, and nothing that differs between workers
    assert sorted([*first.pop("rows").ravel(), *second.pop("rows").ravel()]) == list(range(N))
    assert first["cardinality"] == N // BATCH
    assert first["steps"] == 2 * N // BATCH
    assert str(first["refused"]) == "seed is None for 2 workers that shuffle: give all of them the same number"
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])

    # step i of both together is over batch i of each partition: here one device is fed these
    loaders = [store.loader(BATCH // 2, columns="y", partition=rank, n_partitions=2, **SHUFFLED) for rank in range(2)]
    alone = network(LazyAdam(0.05), flat=False)
    losses = []
    for _ in range(2):
        epoch = []
        for both in zip(*loaders, strict=True):
            x = sp.coo_array(sp.vstack([batch.x for batch in both]))
            x = tf.SparseTensor(np.stack(x.coords, axis=1).astype(np.int64), x.data, x.shape)
            x = tf.sparse.reorder(x)
            epoch.append(alone.train_on_batch(x, np.concatenate([batch.y for batch in both]))[0])
        losses.append(np.mean(epoch))
    np.testing.assert_allclose(first["loss"], losses, rtol=0, atol=1e-5)
    for i, weights in enumerate(alone.get_weights()):
        np.testing.assert_allclose(first[f"arr_{i}"], weights, rtol=0, atol=1e-5)
    expected = alone.evaluate(store.to_tf(80, columns="y"), verbose=0)
    np.testing.assert_allclose([first["val_loss"][-1], first["val_accuracy"][-1]], expected, rtol=0, atol=1e-5)


RESUMED = """
import os, signal, sys
import numpy as np, tensorflow as tf, keras
from typing import Any
strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
import sparsestore as ss
from sparsestore.keras import *
exec(os.environ["MODEL"])
path, folder, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank = strategy.cluster_resolver.task_id

class Killed(keras.callbacks.Callback):
    steps = None  # that were done when it began

    def on_epoch_begin(self, epoch, logs=None):
        if self.steps is None:
            self.steps = int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

def run(folder):
    with strategy.scope():
        model = distributable(network(LazyAdam(0.05), flat=True))
    ds = distributed(ss.open(path), 40, strategy, columns="y", shuffle=True, seed=3)
    resume, killed = Resume(ds, folder, save_freq=3), Killed()
    history = model.fit(ds, epochs=2, verbose=0, callbacks=[resume, killed]).history
    return dict(zip("abcdef", model.get_weights())) | history | {"steps": killed.steps}

refused = ""
if not stop and os.path.exists(f"{folder}/run"):
    try:
        run(folder + ("/run" if rank == 0 else "/of_its_own"))
    except ValueError as error:
        refused = str(error)
np.savez(f"{folder}/{rank}.npz", **run(folder + "/run"), refused=refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 8], ids=["in the first epoch", "in the second"])
def test_two_workers_in_a_process_each_go_on_where_they_were_killed(path: str, tmp_path: Path, stop: int) -> None:
    (tmp_path / "whole").mkdir()
    ended(started(RESUMED, path, str(tmp_path / "whole"), "0"))
    killed = started(RESUMED, path, str(tmp_path), str(stop))
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in killed]
    finally:
        for worker in killed:
            worker.kill()
    # the one that is killed last may learn of the other's end before
    assert -signal.SIGKILL in [worker.returncode for worker in killed], "\n".join(outputs)
    assert (tmp_path / "run" / "resume.npz").exists()
    ended(started(RESUMED, path, str(tmp_path), "0"))
    for rank in range(2):
        found, expected = (dict(np.load(folder / f"{rank}.npz")) for folder in (tmp_path, tmp_path / "whole"))
        assert "of worker 1 is not there, that of worker 0 has crc32" in str(found.pop("refused"))
        assert not str(expected.pop("refused"))
        assert expected.pop("steps") == 0
        assert found.pop("steps") == stop // 3 * 3
        for name, values in expected.items():
            # of epochs before the one in which it went on there are no logs
            np.testing.assert_allclose(found[name], values[-len(found[name]) :], rtol=0, atol=1e-6, err_msg=name)


# ---- Keras's own distribution, on JAX

JAX = """
import sys
import keras, numpy as np, jax
import sparsestore as ss
store = ss.open(sys.argv[1])

def losses(layout):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((30,), sparse=layout == "sparse"), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    ds = store.to_keras(40, columns="y", layout=layout, shuffle=True, seed=3)
    return model, model.fit(ds, epochs=2, verbose=0, shuffle=False).history["loss"]

_, alone = losses("dense")
assert len(jax.devices()) == 2, jax.devices()
keras.distribution.set_distribution(keras.distribution.DataParallel())
model, found = losses("dense")
assert len(model.layers[-1].kernel.value.sharding.device_set) == 2
np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)
try:
    losses("sparse")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(TWO, reason="has a process of its own")
def test_keras_data_parallel_on_jax_in_a_process_of_its_own(path: str) -> None:
    pytest.importorskip("jax", reason="needs JAX, a back end of Keras")
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(JAX), path],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "DataParallel of Keras deals out no sparse arrays of JAX: take layout='dense'" in found.stdout
