"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; missing folders are made.

    Raises OSError, of the cause's own kind, in one sentence that names the file; then no temporary file is left behind, and an
    older file of that name stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # the same folder, so surely the same disk
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
        if isinstance(error, OSError):
            way_out = (
                "free some space or choose another folder" if error.errno == errno.ENOSPC else "choose another place"
            )
            reason = f"cannot write {path} ({error.strerror}): {way_out}"
            raise OSError(error.errno, reason) from error
        raise


def slug(name: str) -> str:
    """A name as part of a path: characters that file systems refuse become "_"."""
    return re.sub(r"[^\w.,+=@-]+", "_", name)
