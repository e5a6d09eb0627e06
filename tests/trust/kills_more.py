"""Processes killed while they optimize, or convert what needs dictionaries: texts as rows and features, and categories.

As `kills`, whose cases have numbers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import sparsestore as ss
from sparsestore import maintain
from trust import kills
from trust.campaign import Campaign, Tally
from trust.kills import LONG, WIDTH, Bench, Given, Step, Versions, Work, append, convert

FEW, SEGMENTS = 9, 14
"""Rows of a small segment, and how many a store has that is optimized."""


def optimize(number: int, how: dict[str, Any], whole: Given | None) -> Step:
    """Segments of a store of a version merged, or all rows shuffled, where they are given as a whole."""

    def do(path: Path) -> None:
        maintain.optimize(path, progress=False, **how)

    def states(versions: Versions) -> list[Versions]:
        newest = max(versions)
        if whole is not None:
            return [{**versions, newest + 1: ((whole, True),)}]
        # once merged there is nothing to be merged
        return [] if newest > number else [{**versions, newest + 1: versions[newest]}]

    return Step(do, states, rows=SEGMENTS * FEW)


class More(Bench):
    """Sources with texts, and stores of many segments."""

    turns = ("optimize", "texts", "categories", "reshuffle", "texts")

    def _made(self, kind: str, rows: int) -> Given:
        if kind == "texts":
            return self._texts(rows)
        return self._categories(rows) if kind == "categories" else super()._made(kind, rows)

    def _texts(self, rows: int) -> Given:
        """Lines of a row, a feature, both texts, a value and the row's label, in any order."""
        rng = np.random.default_rng([7, rows])
        x = np.where(rng.random((rows, WIDTH)) < 0.15, rng.integers(1, 200, (rows, WIDTH)), 0)
        x[np.arange(rows), rng.integers(0, WIDTH, rows)] = 5
        i, j = np.nonzero(x)
        order = rng.permutation(len(i))
        i, j = i[order], j[order]
        y = rng.permutation(rows).astype(np.float32)
        path = self.folder / f"sources/{rows}-texts.csv"
        lines = [f"user {a},item {b},{x[a, b]},{y[a]:g}" for a, b in zip(i, j, strict=True)]
        path.write_text("\n".join(["u,i,v,y", *lines]) + "\n", encoding="ascii")
        # they count as they first come
        users, items = (np.array(list(dict.fromkeys(part.tolist()))) for part in (i, j))
        names, texts = [f"item {b}" for b in items], {"u": [f"user {a}" for a in users]}
        options = {"row": "u:string", "feature": "i:string", "value": "v", "label": "y"}
        found = sp.csr_array(x[users][:, items].astype(np.float32))
        return Given(found, y[users], path, options, 1 << 17, names, texts)

    def _categories(self, rows: int) -> Given:
        """A number and fields of text, whose texts are the features behind it."""
        rng = np.random.default_rng([8, rows])
        fields = [[f"t{value}" for value in rng.integers(0, n, rows)] for n in (20, 20, 19)]
        for at, n in enumerate((20, 20, 19)):  # all of them come
            fields[at][-n:] = [f"t{value}" for value in range(n)]
        y = rng.permutation(rows).astype(np.float32)
        numbers = rng.integers(1, 99, rows)
        path = self.folder / f"sources/{rows}-categories.csv"
        lines = [f"{y[row]:g},{numbers[row]},{','.join(part[row] for part in fields)}" for row in range(rows)]
        path.write_text("\n".join(["y,n,C0,C1,C2", *lines]) + "\n", encoding="ascii")
        return Given(sp.csr_array((rows, WIDTH)), y, path, {"label": "y", "categorical": "C*"}, 1 << 17)

    def given(self, kind: str, rows: int) -> Given:
        """As it is; of categories, whose order is the source's own, as one conversion that nobody kills gives them."""
        if kind != "categories" or (kind, rows) in self._given:
            return super().given(kind, rows)
        made = super().given(kind, rows)
        path = self.folder / "states/categories"
        with ss.convert(made.source, path, progress=False, **made.options) as store:
            found = Given(store[:], made.y, made.source, made.options, made.block_bytes, list(store.feature_names))
        lines = made.source.read_text().splitlines()[1:]
        names = found.names or []
        for row, line in enumerate(lines):
            _, number, *texts = line.split(",")
            wanted = np.zeros(WIDTH, np.float32)
            wanted[0] = float(number)
            wanted[[names.index(f"C{at}={text}") for at, text in enumerate(texts)]] = 1
            if not np.array_equal(found.x[[row]].toarray()[0], wanted):
                raise RuntimeError(f"row {row} of the categories is wrong where nobody kills")
        self._given[kind, rows] = found
        return found

    def state(self, profile: str, n: int) -> tuple[Path, Versions]:
        """A store of as many small segments, a version each."""
        path = self.folder / f"states/{profile}-{n}"
        if (profile, n) not in self._states:
            part = self.given("memory", FEW)
            versions: Versions = {}
            for step in [convert(part, {"profile": profile}), *[append(part)] * (n - 1)]:
                step.do(path)
                versions = step.states(versions)[-1]
            self._states[profile, n] = versions
        return path, self._states[profile, n]

    def work(self, turn: str, rng: np.random.Generator) -> Work:
        """What is done in a case."""
        profile = str(rng.choice(["raw", "compact"]))
        if turn == "optimize":
            return Work(turn, (turn,), SEGMENTS, profile, [optimize(SEGMENTS, {}, None)])
        if turn == "reshuffle":
            part = self.given("memory", FEW)
            x = sp.vstack([part.x] * SEGMENTS, format="csr")
            whole = Given(sp.csr_array(x), np.tile(part.y, SEGMENTS), None, {}, part.block_bytes)
            how = {"reshuffle": True, "seed": int(rng.integers(100))}
            usual = [optimize(SEGMENTS, {**how, "seed": 0}, whole)]
            return Work(turn, (turn,), SEGMENTS, profile, [optimize(SEGMENTS, how, whole)], usual=usual)
        given = self.given(turn, LONG)
        how = {"shuffle": True, "seed": int(rng.integers(100))} if rng.random() < 0.5 else {}
        usual = {**how, "seed": 0} if how else {}
        anew = convert(given, {**how, "profile": profile, "resume": False})
        steps = [convert(given, {**how, "profile": profile})]
        name = f"convert {turn}{' shuffled' * bool(how)}"
        return Work(name, (turn, bool(how)), 0, profile, steps, anew=anew, usual=[convert(given, usual)])


def run(cases: Sequence[int], folder: Path) -> Tally:
    """Kill as each case says."""
    return kills.run_on(More, cases, folder)


bench = partial(kills.bench, kind=More)

CAMPAIGN = Campaign(
    name="kills_more",
    about="kill -9 at any moment of optimize, and of conversions of texts and categories",
    total=6_000,
    sample=40,
    few=4,
    unit=250,
    run=run,
    limit_s=1800,
)
