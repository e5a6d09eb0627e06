"""sparsestore, this project.  Every call of its public API that the benchmark makes is in the four functions below."""
import os

import sparsestore as ss

from ._common import versions_of

CONVERT = dict(shuffle=True, seed=0)
GROUP = 65_536   # rows of a window: read ahead as one, so that the batch after a border may wait for more than itself
SETTINGS = "convert(shuffle=True, seed=0), all else default"


def versions():
    return versions_of("sparsestore", "numba", "numcodecs", "tensorflow", "keras", "numpy", "scipy")


def convert(source, dst):
    """Beside the figures goes what block_rows="auto" makes of the order on disk: blocks so short that the drift S is at most 2."""
    plan = ss.convert(source.csr(), str(dst / "store"), columns={"y": source.labels}, **CONVERT).plan(4096)
    return {"block_rows": plan.block_rows, "window_rows": plan.window_rows, "drift": round(plan.quality.drift, 3)}


def _open(store):
    return ss.open(os.path.join(store, "store"))


def batches(store, source, batch, form, seed):
    layout = {"layout": "dense"} if form == "dense" else {}
    for b in _open(store).loader(batch_size=batch, shuffle=True, seed=seed, **layout):
        yield b.x, b.y


def tf_dataset(store, source, batch, form, seed):
    return _open(store).to_tf(batch_size=batch, layout=form, shuffle=True, seed=seed)
