from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import sparsestore as ss  # noqa: E402
from sparsestore.keras import LazyAdam, Resume, SparseDense, SparseDropout  # noqa: E402

# Keras 3.15 asks TensorFlow 2.21 for arrays in the way of numpy 1
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")

N, WIDTH, BATCH, EPOCHS = 100, 20, 8, 3
STEPS = -(-N // BATCH)


class Killed(Exception):  # noqa: N818
    pass


class Kill(keras.callbacks.Callback):
    """Ends the training behind a batch, as if the process had been killed: nothing is saved on the way out."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) >= self.at:
            raise Killed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rng = np.random.default_rng(0)
    x = rng.random((N, WIDTH)) * (rng.random((N, WIDTH)) < 0.3)
    path = tmp_path_factory.mktemp("resume") / "a.zarr"
    return ss.convert(x, path, columns={"y": rng.integers(0, 2, N)}, progress=False)


def model(optimizer: Any = None) -> Any:
    """With random numbers of its own, and metrics that add up over an epoch."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((WIDTH,), sparse=True)
    hidden = keras.layers.BatchNormalization()(SparseDense(4, "relu")(SparseDropout(0.2)(inputs)))
    found = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(keras.layers.Dropout(0.3)(hidden)))
    found.compile(optimizer or LazyAdam(0.05), "binary_crossentropy", metrics=["accuracy"])
    return found


def fitted(store: Any, *callbacks: Any, resume: Any = None, epochs: int = EPOCHS, **options: Any) -> tuple[Any, Any]:
    """A model and its history, of one run of a script; None where it was killed."""
    made = model(options.pop("optimizer", None))
    ds = store.to_tf(BATCH, shuffle=True, seed=5)
    mine = [] if resume is None else [Resume(ds, **resume)]
    try:
        history = made.fit(ds, epochs=epochs, verbose=0, shuffle=False, callbacks=[*mine, *callbacks], **options)
    except Killed:
        return made, None
    return made, history.history


@pytest.fixture(scope="module")
def whole(store: Any) -> Any:
    return fitted(store)


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert int(found.optimizer.iterations) == int(expected.optimizer.iterations)


@pytest.mark.parametrize(
    ("save_freq", "at"),
    [
        ("epoch", (1, 7)),
        pytest.param(1, (0, STEPS - 1), marks=pytest.mark.slow),
        pytest.param(5, (2, STEPS - 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_script_started_again_ends_with_the_weights_of_one_that_never_stopped(
    store: Any, whole: Any, tmp_path: Path, save_freq: Any, at: tuple[int, int]
) -> None:
    resume = {"folder": tmp_path / "run", "save_freq": save_freq}
    _, history = fitted(store, Kill(*at), resume=resume)
    assert history is None
    found, history = fitted(store, resume=resume)
    assert_same(found, whole[0])
    for name, values in history.items():  # of the epoch that was interrupted, too
        np.testing.assert_allclose(values, whole[1][name][-len(values) :], rtol=1e-5)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_all_the_same(store: Any, whole: Any, tmp_path: Path) -> None:
    rng = random.Random(0)
    at = [divmod(step, STEPS) for step in sorted(rng.sample(range(EPOCHS * STEPS), 5))]
    for each in at:
        fitted(store, Kill(*each), resume={"folder": tmp_path, "save_freq": 2})
    found, _ = fitted(store, resume={"folder": tmp_path, "save_freq": 2})
    assert_same(found, whole[0])


def test_no_batch_is_trained_twice_or_left_out(store: Any, tmp_path: Path) -> None:
    rows: list[int] = []

    class Rows(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.before = int(self.model.optimizer.iterations)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            rows.append(int(self.model.optimizer.iterations) - self.before)

    fitted(store, Rows(), Kill(1, 4), resume={"folder": tmp_path, "save_freq": 1})
    assert rows == [1] * (STEPS + 5)
    rows.clear()
    fitted(store, Rows(), resume={"folder": tmp_path, "save_freq": 1})
    assert rows == [0] * 5 + [1] * (2 * STEPS - 5)


@pytest.mark.slow
def test_a_training_that_is_done_is_not_done_again_and_can_be_made_longer(store: Any, tmp_path: Path) -> None:
    fitted(store, resume={"folder": tmp_path}, epochs=2)
    again, history = fitted(store, resume={"folder": tmp_path}, epochs=2)
    assert history == {}
    longer, history = fitted(store, resume={"folder": tmp_path}, epochs=3)
    assert len(history["loss"]) == 1
    expected, _ = fitted(store, epochs=3)
    assert_same(longer, expected)
    assert again.fit(store.to_tf(BATCH), verbose=0, shuffle=False).epoch == [0]  # the next fit is its own


@pytest.mark.parametrize("first", [True, False], ids=["Resume first", "Resume last"])
@pytest.mark.slow
def test_backup_and_restore_and_model_checkpoint_work_beside_it(
    store: Any, whole: Any, tmp_path: Path, first: bool
) -> None:
    def run(*killers: Any) -> Any:
        made = model()
        ds = store.to_tf(BATCH, shuffle=True, seed=5)
        keras_own = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=3)
        best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_freq=4)
        mine = Resume(ds, tmp_path / "mine", save_freq=2)
        callbacks = [mine, keras_own, best] if first else [keras_own, best, mine]
        try:
            made.fit(ds, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[*callbacks, *killers])
        except Killed:
            return None
        return made

    assert run(Kill(1, 6)) is None
    found = run()
    if not first:
        assert_same(found, whole[0])
    assert int(found.optimizer.iterations) == EPOCHS * STEPS
    assert keras.models.load_model(tmp_path / "best.keras").count_params() == found.count_params()


@pytest.mark.slow
def test_validation_class_weights_and_several_steps_an_execution(store: Any, tmp_path: Path) -> None:
    options = {"validation_data": store.to_tf(32), "class_weight": {0: 1.0, 1: 2.0}}

    def run(folder: Path | None, *killers: Any) -> Any:
        made = model()
        made.compile(LazyAdam(0.05), "binary_crossentropy", metrics=["accuracy"], steps_per_execution=4)
        ds = store.to_tf(BATCH, shuffle=True, seed=5, drop_remainder=True)
        mine = [] if folder is None else [Resume(ds, folder, save_freq=4)]
        try:
            return made, made.fit(
                ds, epochs=2, verbose=0, shuffle=False, callbacks=[*mine, *killers], **options
            ).history
        except Killed:
            return made, None

    expected, losses = run(None)
    run(tmp_path, Kill(0, 7))
    found, again = run(tmp_path)
    assert_same(found, expected)
    assert again.keys() == losses.keys()
    np.testing.assert_allclose(again["val_loss"], losses["val_loss"], rtol=1e-5)


def going_over(
    store: Any,
    folder: Path | None,
    *killers: Any,
    through: Any = lambda ds: ds,
    at_once: int = 1,
    save_freq: Any = 1,
    validated: bool = False,
    **options: Any,
) -> Any:
    """A model after a fit over what `through` makes of the dataset; with a folder it has a Resume."""
    made = model()
    made.compile(LazyAdam(0.05), "binary_crossentropy", metrics=["accuracy"], steps_per_execution=at_once)
    ds = store.to_tf(BATCH, shuffle=True, seed=5)
    mine = [] if folder is None else [Resume(ds, folder, save_freq=save_freq)]
    if validated:
        options["validation_data"] = ds
    with contextlib.suppress(Killed):
        made.fit(through(ds), verbose=0, shuffle=False, callbacks=[*mine, *killers], **options)
    return made


OVER: dict[str, dict[str, Any]] = {
    "epochs by repeat": {"through": lambda ds: ds.repeat(), "steps_per_epoch": STEPS},
    "repeat that reads ahead": {"through": lambda ds: ds.repeat().prefetch(4), "steps_per_epoch": STEPS},
    "other epochs by repeat": {"through": lambda ds: ds.repeat().prefetch(4), "steps_per_epoch": STEPS + 4},
    "several steps an execution": {"at_once": 3},
    "several steps an execution, saved by epochs": {"at_once": 3, "save_freq": "epoch"},
    "several steps an execution, by repeat": {
        "through": lambda ds: ds.repeat(),
        "steps_per_epoch": STEPS,
        "at_once": 3,
    },
    "a validation over the same dataset": {"validated": True},
    "mapped": {"through": lambda ds: ds.map(lambda x, y: (x, 1 - y)).prefetch(3), "class_weight": {0: 1.0, 1: 2.0}},
}
MOST = [pytest.param(name, marks=pytest.mark.slow) if i else name for i, name in enumerate(OVER)]


@pytest.mark.parametrize("name", MOST)
def test_whatever_fit_goes_over_the_weights_are_those_of_a_training_that_never_stopped(
    store: Any, tmp_path: Path, name: str
) -> None:
    options = {"epochs": 3, **OVER[name]}
    expected = going_over(store, None, **options)
    assert_same(going_over(store, tmp_path / "never stopped", **options), expected)
    for at in ((0, 5), (1, 8)):
        going_over(store, tmp_path, Kill(*at), **options)
    assert_same(going_over(store, tmp_path, **options), expected)


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_steps_an_execution(store: Any, tmp_path: Path) -> None:
    going_over(store, tmp_path, Kill(0, 3), epochs=2)
    going_over(store, tmp_path, Kill(0, 8), epochs=2, at_once=3)
    found = going_over(store, tmp_path, epochs=2, at_once=5)
    assert_same(found, going_over(store, None, epochs=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_epoch": 5}, r"13 elements by 5 steps an epoch, expected the 13 .* give fit ds\.repeat\(\)"),
        ({"through": lambda ds: ds.take(5)}, r"5 elements by 5 steps"),
        ({"through": lambda ds: ds.take(5), "steps_per_epoch": STEPS}, r"5 elements by 13 steps"),
        ({"through": lambda ds: ds.repeat(3), "steps_per_epoch": STEPS}, r"39 elements by 13 steps"),
        ({"through": lambda ds: ds.filter(lambda x, y: True)}, r"an unknown number of elements by None steps"),
    ],
    ids=["a part of an epoch", "a part", "less than its steps", "repeated some times", "filtered"],
)
def test_places_that_would_not_be_found_again_are_refused_before_the_first_step(
    store: Any, tmp_path: Path, options: Any, message: str
) -> None:
    iterations = []

    class Begun(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            iterations.append(self.model.optimizer.iterations)

    with pytest.raises(ValueError, match=message):
        going_over(store, tmp_path, Begun(), **options)
    assert [int(each) for each in iterations] == [0]


@pytest.mark.slow
def test_a_place_behind_the_end_of_an_epoch_is_refused(store: Any, tmp_path: Path) -> None:
    going_over(store, tmp_path, Kill(0, 7), through=lambda ds: ds.repeat(), steps_per_epoch=9)
    with pytest.raises(ValueError, match=r"saved after 8 batches of an epoch, and one has 5 here: give fit"):
        going_over(store, tmp_path, through=lambda ds: ds.repeat(), steps_per_epoch=5)


@pytest.mark.slow
def test_a_fit_after_one_that_was_ended_while_it_skipped_skips_nothing(store: Any, tmp_path: Path) -> None:
    going_over(store, tmp_path, Kill(0, 7))
    made = going_over(store, tmp_path, Kill(0, 2))
    assert int(made.optimizer.iterations) == 8
    made.fit(store.to_tf(BATCH), verbose=0, shuffle=False)
    assert int(made.optimizer.iterations) == 8 + STEPS


def test_losses_and_metrics_of_several_outputs_go_on_too(store: Any, tmp_path: Path) -> None:
    def run(folder: Path | None, *killers: Any) -> Any:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((WIDTH,), sparse=True)
        made = keras.Model(inputs, {"y": SparseDense(1, "sigmoid")(inputs), "z": SparseDense(3)(inputs)})
        losses = {"y": "binary_crossentropy", "z": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
        made.compile("sgd", losses, metrics={"y": ["accuracy"]})
        ds = store.to_tf(BATCH, shuffle=True, seed=5)
        both = ds.map(lambda x, y: (x, {"y": y, "z": y + 1}))
        mine = [] if folder is None else [Resume(ds, folder, save_freq=1)]
        return made.fit(both, verbose=0, shuffle=False, callbacks=[*mine, *killers]).history

    expected = run(None)
    with pytest.raises(Killed):
        run(tmp_path, Kill(0, 6))
    found = run(tmp_path)
    assert set(found) == {"loss", "y_loss", "z_loss", "y_accuracy"} == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def test_metrics_that_can_not_go_on_are_named(store: Any, tmp_path: Path) -> None:
    going_over(store, tmp_path, Kill(0, 3))
    made, ds = model(), store.to_tf(BATCH, shuffle=True, seed=5)
    made.compile(LazyAdam(0.05), "binary_crossentropy", metrics=["accuracy", "mae"])
    with pytest.warns(UserWarning, match=r"has 4 variables of metrics, and the model 6: logs of epoch 0 count only"):
        made.fit(ds, verbose=0, shuffle=False, callbacks=[Resume(ds, tmp_path)])


def test_mixed_precision_keeps_its_values(store: Any, tmp_path: Path) -> None:
    def run(*killers: Any, folder: Path | None = None) -> Any:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((WIDTH,), sparse=True)
        made = keras.Model(inputs, SparseDense(1, "sigmoid", dtype="bfloat16")(inputs))
        made.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
        ds = store.to_tf(BATCH, shuffle=True, seed=5)
        mine = [] if folder is None else [Resume(ds, folder, save_freq=3)]
        try:
            made.fit(ds, epochs=1, verbose=0, shuffle=False, callbacks=[*mine, *killers])
        except Killed:
            return None
        return made

    run(Kill(0, 7), folder=tmp_path)
    for one, other in zip(run(folder=tmp_path).get_weights(), run().get_weights(), strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other.astype(np.float32))


def test_the_drawn_seed_of_the_first_run_is_that_of_the_second(store: Any, tmp_path: Path) -> None:
    seeds = []
    for kill in ([Kill(0, 3)], []):
        ds = store.to_tf(BATCH, shuffle=True)
        callbacks = [Resume(ds, tmp_path, save_freq=1), *kill]
        with contextlib.suppress(Killed):
            model().fit(ds, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
        seeds.append(ds.loader.state_dict()["seed"])
    assert seeds[0] == seeds[1]


def test_a_file_of_another_model_or_other_data_is_refused(store: Any, tmp_path: Path) -> None:
    fitted(store, Kill(0, 3), resume={"folder": tmp_path, "save_freq": 1})
    with pytest.raises(ValueError, match=r"resume\.npz is of another model or optimizer.*Remove the file"):
        fitted(store, resume={"folder": tmp_path}, optimizer=keras.optimizers.SGD())
    made, ds = model(), store.to_tf(BATCH * 2, shuffle=True, seed=5)
    with pytest.raises(ValueError, match=r"batch_size is 8, here 16"):
        made.fit(ds, verbose=0, shuffle=False, callbacks=[Resume(ds, tmp_path)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda store: Resume(store.to_tf(BATCH).map(lambda x, y: (x, y)), "x"),
            TypeError,
            r"before any map of yours, or a loader",
        ),
        (lambda store: Resume(store.to_keras(BATCH), "x"), TypeError, r"data is Batches, expected what to_tf returned"),
        (
            lambda store: Resume(store.to_tf(BATCH), "x", save_freq=0),
            ValueError,
            r'save_freq is 0, expected "epoch" or a number of batches',
        ),
        (lambda store: Resume(store.to_tf(BATCH), "x", save_freq="batch"), ValueError, r"save_freq is 'batch'"),
    ],
)
def test_bad_arguments(store: Any, make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(store)


SCRIPT = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
import sparsestore as ss
from sparsestore.keras import LazyAdam, Resume, SparseDense, SparseDropout
store, folder, kill = ss.open(sys.argv[1]), sys.argv[2], int(sys.argv[3])
keras.utils.set_random_seed(1)
inputs = keras.Input((store.shape[1],), sparse=True)
model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(SparseDense(8, "relu")(SparseDropout(0.1)(inputs))))
model.compile(LazyAdam(0.01), "binary_crossentropy")
class Kill(keras.callbacks.Callback):
    n = 0
    def on_train_batch_end(self, batch, logs=None):
        self.n += 1
        if self.n == kill:
            os.kill(os.getpid(), 9)
ds = store.to_tf(8, shuffle=True, seed=0)
model.fit(ds, epochs=2, verbose=0, shuffle=False, callbacks=[Resume(ds, folder, save_freq=3), Kill()])
np.savez(folder + "/weights.npz", *model.get_weights())
"""


@pytest.mark.slow
def test_processes_killed_at_twenty_batches_end_with_the_same_bits(store: Any, tmp_path: Path) -> None:
    """With one thread the same sums are made in the same order."""

    def run(name: str, kill: int) -> int:
        command = [sys.executable, "-c", SCRIPT, store.path, str(tmp_path / name), str(kill)]
        (tmp_path / name).mkdir(exist_ok=True)
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert run("whole", 0) == 0
    expected = np.load(tmp_path / "whole" / "weights.npz")
    for kill in random.Random(1).sample(range(1, 2 * STEPS), 20):
        name = f"killed {kill}"
        assert run(name, kill) == -signal.SIGKILL
        assert run(name, 0) == 0
        found = np.load(tmp_path / name / "weights.npz")
        assert all(np.array_equal(found[key], expected[key]) for key in expected.files), kill
