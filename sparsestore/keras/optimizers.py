"""Optimizers that update only the rows of a table that a batch used, and are their Keras twins for everything else.

The gradient of a kernel behind sparse rows is a `tf.IndexedSlices`: some rows of many. Adam, momentum and FTRL of Keras
update all rows all the same, as their moments fade everywhere at every step. These leave a row that is not in the
batch as it is, moments included: a step costs what the batch has, not what the table has. That is a different method
wherever rows are left out, and the same one where all rows are in every batch; only Adagrad is the same always.

A weight decay, a moving average of the weights (`use_ema`), `gradient_accumulation_steps` and a regulariser or
constraint of the layer go over the whole table at each step, as in Keras, and take the gain away.
"""

from __future__ import annotations

from typing import Any

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError('sparsestore.keras needs TensorFlow: pip install "sparsestore[tensorflow]"') from error

__all__ = ["LazyAdagrad", "LazyAdam", "LazyFTRL", "LazyMomentum"]

_registered = keras.saving.register_keras_serializable(package="sparsestore")


def _summed(gradient: tf.IndexedSlices, dtype: Any) -> tuple[Any, Any]:
    """Rows that a gradient touches, each once, and their gradients: parts of one row are summed before any square."""
    rows, which = tf.unique(gradient.indices)
    return rows, tf.math.unsorted_segment_sum(tf.cast(gradient.values, dtype), which, tf.size(rows))


def _take(table: Any, rows: Any) -> Any:
    """Some rows of an optimizer's variable."""
    return tf.gather(table.value if isinstance(table, keras.Variable) else table, rows)


class _Lazy:
    """What an optimizer of Keras does with the gradient of a whole variable, and its own rule for that of some rows."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable by its gradient."""
        if isinstance(gradient, tf.IndexedSlices):
            rate = tf.cast(learning_rate, variable.dtype)
            self.update_rows(variable, *_summed(gradient, variable.dtype), rate)
        else:
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def update_rows(self, variable: Any, rows: Any, g: Any, rate: Any) -> None:
        """Update some rows of one variable by their gradients."""
        raise NotImplementedError


@_registered
class LazyAdam(_Lazy, keras.optimizers.Adam):
    """Adam whose moments and weights of a row change only in steps whose batch has the row.

    Parameters
    ----------
    **options
        Those of `keras.optimizers.Adam`.

    Notes
    -----
    A row that comes back after a pause has the moments it had, where those of Adam have faded; the correction of the
    bias counts all steps (`iterations`), as in Adam. After Kingma and Ba, "Adam: a method for stochastic optimization",
    ICLR 2015; the lazy rule is that of TensorFlow's ``LazyAdamOptimizer``.

    Examples
    --------
    >>> from sparsestore.keras import LazyAdam
    >>> LazyAdam(0.01).name
    'lazy_adam'
    """

    def __init__(self, *args: Any, name: str = "lazy_adam", **options: Any) -> None:
        super().__init__(*args, name=name, **options)

    def update_rows(self, variable: Any, rows: Any, g: Any, rate: Any) -> None:
        """Update some rows of one variable by their gradients."""
        dtype = variable.dtype
        at = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, dtype)
        fade_1, fade_2 = tf.cast(self.beta_1, dtype), tf.cast(self.beta_2, dtype)
        rate *= tf.sqrt(1 - tf.pow(fade_2, step)) / (1 - tf.pow(fade_1, step))
        m, v = _take(self._momentums[at], rows), _take(self._velocities[at], rows)
        m += (g - m) * (1 - fade_1)
        v += (tf.square(g) - v) * (1 - fade_2)
        self.assign(self._momentums[at], tf.IndexedSlices(m, rows))
        self.assign(self._velocities[at], tf.IndexedSlices(v, rows))
        if self.amsgrad:
            v = tf.maximum(_take(self._velocity_hats[at], rows), v)
            self.assign(self._velocity_hats[at], tf.IndexedSlices(v, rows))
        self.assign_sub(variable, tf.IndexedSlices(rate * m / (tf.sqrt(v) + self.epsilon), rows))


@_registered
class LazyAdagrad(_Lazy, keras.optimizers.Adagrad):
    """Adagrad that reads and writes the rows of the batch alone: the same weights as Adagrad's, to the last bits.

    Parameters
    ----------
    **options
        Those of `keras.optimizers.Adagrad`.

    Notes
    -----
    Adagrad leaves a row without a gradient as it is (Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12,
    2011), so nothing is different but the time: that of Keras computes with the accumulator of all rows.
    """

    def __init__(self, *args: Any, name: str = "lazy_adagrad", **options: Any) -> None:
        super().__init__(*args, name=name, **options)

    def update_rows(self, variable: Any, rows: Any, g: Any, rate: Any) -> None:
        """Update some rows of one variable by their gradients."""
        accumulator = self._accumulators[self._get_variable_index(variable)]
        total = _take(accumulator, rows) + tf.square(g)
        self.assign(accumulator, tf.IndexedSlices(total, rows))
        self.assign_sub(variable, tf.IndexedSlices(rate * g / tf.sqrt(total + self.epsilon), rows))


@_registered
class LazyMomentum(_Lazy, keras.optimizers.SGD):
    """Gradient descent with momentum, where a row moves only in steps whose batch has it.

    Parameters
    ----------
    learning_rate : float or schedule
    momentum : float
    **options
        Those of `keras.optimizers.SGD`, ``nesterov`` among them.

    Notes
    -----
    With SGD of Keras a row goes on moving by its momentum while it is in no batch. Momentum and Nesterov's form as in
    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        *args: Any,
        name: str = "lazy_momentum",
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, *args, name=name, **options)

    def update_rows(self, variable: Any, rows: Any, g: Any, rate: Any) -> None:
        """Update some rows of one variable by their gradients."""
        if not self.momentum:
            self.assign_sub(variable, tf.IndexedSlices(rate * g, rows))
            return
        momenta = self.momentums[self._get_variable_index(variable)]
        momentum = tf.cast(self.momentum, variable.dtype)
        moved = momentum * _take(momenta, rows) - rate * g
        self.assign(momenta, tf.IndexedSlices(moved, rows))
        self.assign_add(variable, tf.IndexedSlices(momentum * moved - rate * g if self.nesterov else moved, rows))


@_registered
class LazyFTRL(_Lazy, keras.optimizers.Ftrl):
    """FTRL-proximal over the rows of the batch: the others keep their weights.

    Parameters
    ----------
    **options
        Those of `keras.optimizers.Ftrl`.

    Notes
    -----
    After McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, which updates the coordinates of
    the example alone. Ftrl of Keras differs in rows that no batch had yet: it sets them to 0 at the first step, where
    here they keep what they were initialised to; start from zeros to have the same. With
    ``l2_shrinkage_regularization_strength`` it goes on shrinking rows that are in no batch, which this does not.
    """

    def __init__(self, *args: Any, name: str = "lazy_ftrl", **options: Any) -> None:
        super().__init__(*args, name=name, **options)

    def update_rows(self, variable: Any, rows: Any, g: Any, rate: Any) -> None:
        """Update some rows of one variable by their gradients."""
        dtype = variable.dtype
        at = self._get_variable_index(variable)
        power = tf.cast(self.learning_rate_power, dtype)
        weights = _take(variable, rows)
        before, linear = _take(self._accumulators[at], rows), _take(self._linears[at], rows)
        after = before + tf.square(g)
        pulled = g + 2 * tf.cast(self.l2_shrinkage_regularization_strength, dtype) * weights
        linear += pulled - (tf.pow(after, -power) - tf.pow(before, -power)) / rate * weights
        # beta of the paper is added to l2, as Keras does
        l2 = tf.cast(self.l2_regularization_strength, dtype) + tf.cast(self.beta, dtype) / (2 * rate)
        curvature = tf.pow(after, -power) / rate + 2 * l2
        l1 = tf.cast(self.l1_regularization_strength, dtype)
        self.assign(self._accumulators[at], tf.IndexedSlices(after, rows))
        self.assign(self._linears[at], tf.IndexedSlices(linear, rows))
        self.assign(variable, tf.IndexedSlices((tf.clip_by_value(linear, -l1, l1) - linear) / curvature, rows))
