"""A process for one epoch: started, watched from outside, ended with its parent's interest in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

from sparsestore import errors
from sparsestore.bench.epoch import anonymous_bytes
from sparsestore.bench.report import Run

__all__ = ["run_apart"]

SAMPLE_EVERY_S = 0.02
_COMMAND = "from sparsestore.bench.epoch import main; main()"


def run_apart(**task: Any) -> Run:
    """Do `epoch.run` in a fresh process, its memory sampled every 20 ms; the task is the arguments.

    Raises
    ------
    SparsestoreError
        What the epoch raised, or that its process was ended.
    """
    # modules are found where this process finds them; without -P it would look in the working folder first
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    command = [sys.executable, "-P", "-c", _COMMAND, json.dumps(task)]
    peak = 0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        # nothing is written to its stdin: the end of it tells the child that nobody waits for it any more
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=said) as child:
            try:
                while _runs(child):
                    peak = max(peak, anonymous_bytes(child.pid) or 0)
            except BaseException:
                child.kill()
                raise
        out.seek(0)
        said.seek(0)
        result, last = out.read(), said.read().decode(errors="replace").strip().rpartition("\n")[2]
    if child.returncode:
        raise errors.SparsestoreError(f"the process of an epoch ended {_ending(child.returncode)}: {last or 'no word'}")
    document = json.loads(result)
    if "error" in document:
        kind = getattr(errors, document["error"], None)
        if kind is None:
            raise errors.SparsestoreError(f"an epoch failed: {document['error']}: {document['message']}")
        raise kind(document["message"])
    run = Run(**document)
    return (
        run
        if run.peak_anonymous_bytes is None
        else replace(run, peak_anonymous_bytes=max(peak, run.peak_anonymous_bytes))
    )


def _runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(timeout=SAMPLE_EVERY_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _ending(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
