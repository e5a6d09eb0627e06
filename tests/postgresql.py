"""A real PostgreSQL server on loopback, in a folder of its own, for as long as a test session needs it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret-«pw»"


def programs() -> Path | None:
    """Folder with initdb and pg_ctl: of the path, or where Debian and Homebrew put them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/opt/homebrew/opt").glob("postgresql*/bin")]
    return max((folder for folder in folders if (folder / "initdb").exists()), default=None)


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """Start one, and give its port; skips where PostgreSQL is not installed."""
    bin_ = programs()
    if bin_ is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    # it refuses to run as root: then it runs as whom its package, or the system, has for such things
    user = next((u for u in ("postgres", "nobody") if _exists(u)), None) if os.geteuid() == 0 else None
    if os.geteuid() == 0 and user is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user for it")
    if user:
        for parent in (folder, *folder.parents[:3]):
            if parent.stat().st_uid == 0 and "pytest" in str(parent):
                parent.chmod(0o755)
        shutil.chown(folder, user)
    (folder / "pw").write_text(PASSWORD)
    (folder / "pw").chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    options = {"user": user, "check": True, "capture_output": True, "cwd": folder, "timeout": 120}
    secured = ["-U", "tester", "-A", "scram-sha-256", f"--pwfile={folder / 'pw'}"]
    command = [bin_ / "initdb", "-D", data, "-N", "--locale=C", "-E", "UTF8", *secured]
    subprocess.run(command, **options)  # type: ignore[call-overload]
    settings = f"-p {port} -k {folder} -h 127.0.0.1 -F"
    control = [bin_ / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-l", folder / "log", "-o", settings, "start"], **options)  # type: ignore[call-overload]
    try:
        yield port
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **options)  # type: ignore[call-overload]


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
