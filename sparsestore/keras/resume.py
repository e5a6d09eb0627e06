"""Going on with a training that was ended at any batch: weights, optimizer, random seeds and the place in the data."""

from __future__ import annotations

import json
import os
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
        What ``to_tf`` returned for ``fit`` (before any ``map`` of yours), or its loader.
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
        every worker where one finds another file in its folder than the first one does.

    Notes
    -----
    The weights after an epoch are those of a training that never stopped: to the last bit where TensorFlow computes in
    one thread of a processor, as its sums depend on the order otherwise. Batches after the last save are trained again,
    from the state they were trained from first. Keras goes through the whole epoch: steps that were done before the
    state was saved return at once with the logs it had, so that bars, logs and metrics go on too. Other callbacks see
    these steps. `keras.callbacks.BackupAndRestore` and `ModelCheckpoint` may be used beside it; by itself the former
    starts the epoch again with weights that have seen its first batches (keras-team/keras#16252). If it was last to
    restore weights, the batch is found by the number of steps of the optimizer.

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
        if not hasattr(loader, "load_state_dict"):
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
        self._done = 0  # batches of it
        self._saved = 0  # of them, when the state was saved last
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
        self._loader.load_state_dict(self._state(*self._restored.begun))
        # as BackupAndRestore of Keras tells fit where to begin
        self.model._initial_epoch = self._restored.epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
        """Begin an epoch; the first one after a restart begins where the state was saved."""
        whole = self._first or self.params.get("steps") in (None, len(self._loader))
        self._begun = self._loader.following if whole else self._after(self._done)  # an iterator goes on over epochs
        self._epoch, self._done, self._saved, self._first = epoch, 0, 0, False
        restored, self._restored = self._restored, None
        if restored is None:
            return
        self._begun = restored.begun
        done, steps = restored.done, int(self.model.optimizer.iterations.numpy()) - restored.iterations
        if steps or epoch != restored.epoch:  # another callback has put in other weights
            done += steps + (restored.epoch - epoch) * len(self._loader)
            self._begun = (restored.begun[0] + epoch - restored.epoch, restored.begun[1])
            if not 0 <= done <= len(self._loader):
                raise ValueError(
                    f"{self._path} is {steps} steps away from the weights that another callback restored, which is not "
                    f"in epoch {epoch}: give Resume a smaller save_freq, or leave the other callback out"
                )
        self._loader.load_state_dict(self._state(*self._after(done)))
        if done:
            self._saved = done
            self.model.train_function = self._skipping(self.model.train_function, done, restored)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the batches, and save the state now and then."""
        self._done = batch + 1
        self._logs = logs or {}
        if self.save_freq != "epoch" and self._done - self._saved >= int(self.save_freq):
            self._save(self._epoch, self._begun, self._done)
            self._saved = self._done

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras names it
        """Save the state at the end of an epoch."""
        begun = self._after(self._done)
        if self._done == len(self._loader) and self._loader.following != begun:
            # the dataset that began inside this epoch would begin the next one inside, too
            self._loader.load_state_dict(self._state(*begun))
        self._save(epoch + 1, begun, 0)

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

    def _state(self, epoch: int, batch: int) -> dict[str, Any]:
        """A state of the loader at another place; of one that was saved, where there is one."""
        known = self._loader.state_dict() if self._restored is None else self._restored.loader
        return {**known, "epoch": epoch, "batch": batch}

    def _skipping(self, train: Callable[[Any], Any], n_steps: int, restored: _Restored) -> Callable[[Any], Any]:
        """What Keras calls for each step, at first without doing anything for the steps that were done."""
        left = n_steps

        def step(iterator: Any) -> Any:
            nonlocal left
            if left == n_steps:
                if self.model.distribute_strategy.num_replicas_in_sync == 1:  # else Keras has done so
                    self._build_metrics(iterator.element_spec)
                if len(self.model.metrics_variables) == restored.count("metrics"):
                    restored.put("metrics", self.model.metrics_variables)
            if left > 0:
                left -= self.model.steps_per_execution
                return dict(restored.logs)
            self.model.train_function = train
            return train(iterator)

        return step

    def _build_metrics(self, spec: Any) -> None:
        """Have the metrics make their variables, which they do for the first batch, by one row of zeros."""
        batch = tf.nest.map_structure(_zeros, spec)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        self.model.compute_metrics(x, y, self.model(x, training=False), sample_weight=sample_weight)
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
