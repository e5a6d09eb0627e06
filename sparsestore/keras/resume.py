"""Going on with a training that was ended at any batch: weights, optimizer, random seeds and the place in the data."""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

from sparsestore.keras.check import check
from sparsestore.keras.distribution import n_workers

__all__ = ["Resume"]

FILE = "resume.npz"


class Resume(keras.callbacks.Callback):
    """Saves a training as it goes; in the same script, started again, goes on where it was, at any batch.

    Parameters
    ----------
    data : tf.data.Dataset or Loader
        What ``to_tf`` returned for ``fit`` (before any ``map`` of yours), or its loader. `fit` goes over all of it each
        epoch, or over ``ds.repeat()``, by any ``steps_per_epoch``; it may be mapped and prefetched before or after.
    folder : str or path
        Where the state is kept, in one file that is replaced as a whole. Of several workers the first one writes it and
        all read it: give them the same folder, on a file system that they share.
    save_freq : "epoch" or int
        After each epoch, or after so many batches as well.

    Raises
    ------
    ValueError
        When training begins, where the file is of another model or optimizer, or of another version, view, batch size
        or order of the data: what differs is named. Also where `check` finds a layer that fails on sparse rows, and on
        every worker where one finds another file in its folder than the first one does. Before the first step, where
        `fit` goes over a part of the data or its epochs are of another length without ``repeat``, as places in it would
        not be those of the loader.

    Notes
    -----
    The weights after an epoch are those of a training that never stopped: to the last bit where TensorFlow computes in
    one thread of a processor, as its sums depend on the order otherwise. Batches after the last save are trained again,
    from the state they were trained from first. Keras goes through the whole epoch: steps that were done before the
    state was saved return at once with the logs it had, so that bars, logs and metrics go on too; where the metrics are
    others than those saved, a warning says that they do not. Other callbacks see these steps.
    `keras.callbacks.BackupAndRestore` and `ModelCheckpoint` may be used beside it; by itself the former starts the
    epoch again with weights that have seen its first batches (keras-team/keras#16252). If it was last to restore
    weights, the batch is found by the number of steps of the optimizer.

    Examples
    --------
    >>> import keras, numpy as np, tempfile, sparsestore as ss
    >>> from sparsestore.keras import Resume, SparseDense
    >>> folder = tempfile.mkdtemp()
    >>> store = ss.convert(np.eye(64), folder + "/eye.zarr", columns={"y": np.arange(64) % 2})
    >>> model = keras.Sequential([keras.Input((64,), sparse=True), SparseDense(1, "sigmoid")])
    >>> model.compile("sgd", "binary_crossentropy")
    >>> ds = store.to_tf(8, shuffle=True, seed=0)
    >>> history = model.fit(ds, epochs=2, verbose=0, callbacks=[Resume(ds, folder + "/run", save_freq=3)])
    """

    def __init__(self, data: Any, folder: str | os.PathLike[str], *, save_freq: int | str = "epoch") -> None:
        super().__init__()
        loader = getattr(data, "loader", data)
        if not hasattr(loader, "following"):
            raise TypeError(
                f"data is {type(data).__name__}, expected what to_tf returned, before any map of yours, or a loader"
            )
        if save_freq != "epoch" and (isinstance(save_freq, (bool, str)) or save_freq < 1):
            raise ValueError(f'save_freq is {save_freq!r}, expected "epoch" or a number of batches of at least 1')
        self.save_freq = save_freq
        self._loader = loader
        self._path = Path(folder) / FILE
        self._epoch = 0  # of Keras
        self._begun = (0, 0)  # epoch and batch of the loader at which this epoch of Keras begins
        self._length = 0  # batches of an epoch of Keras
        self._repeats = False  # whether an iterator goes on over epochs
        self._done = 0  # batches of this one
        self._saved = 0  # of these, when the state was saved last
        self._first = True
        self._logs: Mapping[str, Any] = {}
        self._restored: _Restored | None = None

    # ---- what Keras calls

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
        """Take up what was saved, if anything was; before that, look whether the model can be trained at all."""
        check(self.model)
        self._restored, self._first = None, True
        self._agree()
        if not self._path.exists():
            return
        if not self.model.built:
            raise ValueError("Resume needs a model that is built: give it an Input, or call it on a batch first")
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self._restored = _Restored(self._path)
        self._restored.put("model", self.model.variables)
        self._restored.put("optimizer", self.model.optimizer.variables)
        epoch, batch = self._restored.begun
        self._loader.load_state_dict({**self._restored.loader, "epoch": epoch, "batch": batch})
        # as BackupAndRestore of Keras tells fit where to begin
        self.model._initial_epoch = self._restored.epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
        """Begin an epoch; the first one after a restart begins where the state was saved."""
        self._epoch, self._done, self._saved = epoch, 0, 0
        if self._first:
            self._first = False
            self.model.train_function = self._beginning(self.model.train_function)
        elif not self._repeats:
            self._begun = self._loader.following

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the batches, and save the state now and then."""
        self._done = min(batch + 1, self._length)  # the last execution of an epoch may have found fewer
        self._logs = logs or {}
        if self.save_freq != "epoch" and self._done - self._saved >= int(self.save_freq):
            self._save(self._epoch, self._begun, self._done)
            self._saved = self._done

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
        """Save the state at the end of an epoch."""
        ended = self._done == self._length and not self._repeats
        # others may have taken an epoch meanwhile, as a validation over the same dataset does
        self._begun = self._loader.following if ended else self._after(self._done)
        self._save(epoch + 1, self._begun, 0)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
        """Leave nothing behind for the next fit."""
        self.model._initial_epoch = 0

    # ---- several workers

    def _agree(self) -> None:
        """Go on only if all workers go on from the same state: each would wait for the others' other steps for ever."""
        strategy = self.model.distribute_strategy
        if n_workers(strategy) == 1:
            return
        crc = _crc32(self._path)
        each = strategy.experimental_distribute_values_from_function(lambda _: tf.constant([crc], tf.int64))
        # of each replica, those of one worker one after the other
        found = strategy.gather(each, axis=0).numpy().reshape(n_workers(strategy), -1)[:, 0].tolist()
        if len(set(found)) > 1:
            other = next(worker for worker, crc in enumerate(found) if crc != found[0])
            raise ValueError(
                f"{self._path} of worker {other} {_of(found[other])}, that of worker 0 {_of(found[0])}: give Resume on "
                "all workers the same folder, on a file system that they share"
            )

    # ---- places

    def _after(self, n_batches: int) -> tuple[int, int]:
        """Epoch and batch of the loader so many batches after the beginning of this epoch of Keras."""
        epoch, batch = self._begun
        more, batch = divmod(batch + n_batches, len(self._loader))
        return epoch + more, batch

    def _go(self, place: tuple[int, int]) -> None:
        """Have the next iteration over the loader begin there."""
        epoch, batch = place
        self._loader.load_state_dict({**self._loader.state_dict(), "epoch": epoch, "batch": batch})

    # ---- the first steps, which alone see what fit goes over

    def _beginning(self, train: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What Keras calls for the first step: before it anything is read, the loader is where it has to be."""

        def step(iterator: Any) -> Any:
            self.model.train_function = train
            self._measure(iterator)
            self._begun = self._loader.following
            restored, self._restored = self._restored, None
            done = 0 if restored is None else self._take_up(restored)
            if restored is not None and done:
                self._restore_metrics(restored, iterator.element_spec)
                self._saved = done
                self.model.train_function = self._skipping(train, iterator, done, restored.logs)
            return self.model.train_function(iterator)

        return step

    def _measure(self, iterator: Any) -> None:
        """Find how many batches an epoch of Keras has, and whether an iterator goes on over epochs."""
        steps, n_batches, at_once = self.params.get("steps"), len(self._loader), self.model.steps_per_execution
        found = _cardinality(iterator)
        self._repeats = found == tf.data.INFINITE_CARDINALITY
        if self._repeats:
            self._length = -(-(steps or sys.maxsize) // at_once) * at_once  # Keras makes the last execution whole
            return
        self._length = n_batches
        strategy = self.model.distribute_strategy
        n_parts = strategy.num_replicas_in_sync // n_workers(strategy)  # in which `distributed` gives a batch
        if steps != n_batches or found not in (n_batches, n_batches * n_parts):
            raise ValueError(
                f"fit goes over {'an unknown number of' if found < 0 else found} elements by {steps} steps an epoch, "
                f"expected the {n_batches} batches of the loader, all of them each epoch: Resume would not find its "
                "place again. For epochs of another length give fit ds.repeat() and steps_per_epoch"
            )

    def _take_up(self, restored: _Restored) -> int:
        """Put the loader where the state was saved; gives the batches of this epoch that were done then."""
        self._begun = restored.begun
        done, steps = restored.done, int(self.model.optimizer.iterations.numpy()) - restored.iterations
        if steps or self._epoch != restored.epoch:  # another callback has put in other weights
            n_between = (self._epoch - restored.epoch) * self._length
            done += steps - n_between
            self._begun = self._after(n_between)
            if not 0 <= done <= self._length:
                raise ValueError(
                    f"{self._path} is {steps} steps away from the weights that another callback restored, which is not "
                    f"in epoch {self._epoch}: give Resume a smaller save_freq, or leave the other callback out"
                )
        if done > self._length:
            raise ValueError(
                f"{self._path} was saved after {done} batches of an epoch, and one has {self._length} here: give fit "
                "the steps_per_epoch that it had"
            )
        self._go(self._after(done))
        return done

    def _skipping(
        self, train: Callable[[Any], Any], begun: Any, n_done: int, logs: Mapping[str, float]
    ) -> Callable[[Any], Any]:
        """What Keras calls for the steps of this epoch: of an execution, only batches that were not done are trained.

        `begun` is the iterator of the epoch; with another one, this is left over from a fit that was interrupted.
        """
        at_once = self.model.steps_per_execution

        def step(iterator: Any) -> Any:
            if iterator is not begun or self._done + at_once >= self._length:
                self.model.train_function = train  # from the next step on
            if iterator is not begun:
                return train(iterator)
            left = min(self._done + at_once, self._length) - max(self._done, n_done)
            if left <= 0:
                return dict(logs)
            # the iterator began later than the epoch, and so goes on behind its end
            found = train(iterator if left == at_once else itertools.islice(iterator, left))
            if self._done <= n_done and not self._repeats:
                # now that it has begun; the next one would begin inside an epoch, too
                self._go(self._after(self._length))
            return found

        return step

    def _restore_metrics(self, restored: _Restored, spec: Any) -> None:
        """Give the metrics the values they had, so that the logs of the epoch are those of all its batches."""
        n = restored.count("metrics")
        if len(self.model.metrics_variables) != n and self.model.distribute_strategy.num_replicas_in_sync == 1:
            self._build_metrics(spec)  # by several replicas Keras has done so
        found = len(self.model.metrics_variables)
        if found != n:
            warnings.warn(
                f"{self._path} has {n} variables of metrics, and the model {found}: logs of epoch {self._epoch} count "
                "only its batches from here on. The weights are not concerned",
                stacklevel=2,
            )
            return
        restored.put("metrics", self.model.metrics_variables)

    def _build_metrics(self, spec: Any) -> None:
        """Have metrics and losses make their variables, which they do for the first batch, by one row of zeros."""
        batch = tf.nest.map_structure(_zeros, spec)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        found = self.model(x, training=False)
        if self.model.loss is not None:  # of several outputs each has a mean of its own
            self.model._compute_loss(x, y, found, sample_weight, training=False)
        self.model.compute_metrics(x, y, found, sample_weight=sample_weight)
        self.model.reset_metrics()

    # ---- the file

    def _save(self, epoch: int, begun: tuple[int, int], done: int) -> None:
        groups = {
            "model": self.model.variables,
            "optimizer": self.model.optimizer.variables,
            "metrics": self.model.metrics_variables if done else [],
        }
        facts = {
            "epoch": epoch,
            "begun": begun,
            "done": done,
            "iterations": int(self.model.optimizer.iterations.numpy()),
            "logs": {name: float(value) for name, value in self._logs.items()},
            "loader": self._loader.state_dict(),
            "variables": {group: [_described(each) for each in variables] for group, variables in groups.items()},
        }
        arrays = {f"{group}/{i}": _plain(each) for group, some in groups.items() for i, each in enumerate(some)}
        if n_workers(self.model.distribute_strategy) > 1 and self._loader.partition:
            return  # the first worker writes; to read a metric of all workers takes all of them
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
                **arrays,
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


class _Restored:
    """What a file has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with np.load(path, allow_pickle=False) as found:
            facts = json.loads(found["facts"].tobytes())
        self.epoch: int = facts["epoch"]
        self.begun: tuple[int, int] = (facts["begun"][0], facts["begun"][1])
        self.done: int = facts["done"]
        self.iterations: int = facts["iterations"]
        self.logs: dict[str, float] = facts["logs"]
        self.loader: dict[str, Any] = facts["loader"]
        self._variables: dict[str, list[list[Any]]] = facts["variables"]

    def count(self, group: str) -> int:
        """Variables of a group."""
        return len(self._variables[group])

    def put(self, group: str, variables: Sequence[Any]) -> None:
        """Give variables the values they had."""
        here, there = [_described(each) for each in variables], self._variables[group]
        if here != there:
            differ = next(
                (pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]), (len(here), len(there))
            )
            raise ValueError(
                f"{self._path} is of another model or optimizer: variables of the {group} are {differ[0]} here, and "
                f"{differ[1]} there. Remove the file to begin anew, or use another folder"
            )
        with np.load(self._path, allow_pickle=False) as found:
            for i, variable in enumerate(variables):
                variable.assign(found[f"{group}/{i}"].view(_numpy(variable).dtype).reshape(variable.shape))


def _crc32(path: Path) -> int:
    """Of a file; 0 of none."""
    try:
        with path.open("rb") as file:
            crc = 0
            while piece := file.read(1 << 20):
                crc = zlib.crc32(piece, crc)
            return crc
    except FileNotFoundError:
        return 0


def _of(crc: int) -> str:
    return f"has crc32 {crc:08x}" if crc else "is not there"


def _cardinality(iterator: Any) -> int:
    """Elements of the dataset of an iterator, which Keras has alone: callbacks learn the number of steps."""
    if isinstance(iterator, tf.distribute.DistributedIterator):
        return int(iterator._cardinality)
    return int(iterator._dataset.cardinality())


def _zeros(spec: Any) -> Any:
    """A row of what a dataset gives."""
    shape = [1 if size is None else size for size in spec.shape]
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.SparseTensor(tf.zeros((0, len(shape)), tf.int64), tf.zeros(0, spec.dtype), [1, *shape[1:]])
    return tf.zeros([1, *shape[1:]], spec.dtype)


def _described(variable: Any) -> list[Any]:
    """What must agree for a value to be of a variable; names carry counters, which differ from model to model."""
    return [list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def _numpy(variable: Any) -> np.ndarray[Any, Any]:
    # keras.ops.convert_to_numpy asks for it in the way of numpy 1, which TensorFlow warns of
    return np.asarray(tf.convert_to_tensor(variable.value).numpy())


def _plain(variable: Any) -> np.ndarray[Any, Any]:
    """A value that a file without pickle can hold; numpy itself has no bfloat16."""
    array = _numpy(variable)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" or array.dtype.isbuiltin != 1 else array
