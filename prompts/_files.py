"""Permissions of files that a library wrote for their owner alone."""

from __future__ import annotations

import os
from pathlib import Path


def usual_mode(path: Path) -> None:
    """Give a file or a folder the permissions that any new one has here, as the umask says."""
    mask = os.umask(0o077)  # it is read by being set; what another thread makes meanwhile is no more open
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
