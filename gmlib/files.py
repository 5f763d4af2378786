"""Writing files atomically, and names that are safe in paths."""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file completely or not at all. Missing folders are created.

    Parameters
    ----------
    path : path
        An existing file of this name is replaced.
    data : bytes

    Raises
    ------
    OSError
        If the file cannot be written. The message names it. An existing file stays unchanged, and no temporary file
        is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # os.replace needs the same disk, so the same folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        full = error.errno == errno.ENOSPC
        advice = "free some space or choose another folder" if full else "choose another place"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}): {advice}") from error


def slug(name: str) -> str:
    """Replace the characters of a name that file systems refuse by "_"."""
    return re.sub(r"[^\w.,+=@-]+", "_", name)
