"""Files that are written atomically and checked when they are read, and names that are safe in paths.

A stored file holds the sha256 of its own content: `write_tensors` puts it into the metadata of a safetensors file,
and `write_json` beside the other keys of a JSON object. `read_tensors` and `read_json` refuse a changed file.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .checks import first_sentence

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

DIGEST = "sha256"  # the key of the digest in metadata and in JSON
MOST_JSON = 2**28  # bytes: a larger file is no file of a run
LONGEST_NAME = 100  # bytes of a name in a path. File systems take 255, and names get endings
TRIES = 5
TOKEN = "[0-9a-f]" * 16  # the part of a temporary file's name that differs, as a pattern
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows refuses


def as_path(path: str | os.PathLike) -> Path:
    """A path that a caller gave, with ``~`` expanded.

    Raises
    ------
    ValueError
        If it is not a path.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise ValueError(f"{path!r} is not a path: give a str or a Path")
    return Path(os.path.expanduser(path))


def path_or(path: str | os.PathLike | None, otherwise: str | os.PathLike) -> Path:
    """`as_path` of a path that a caller gave. For None or an empty word it takes the other one."""
    return as_path(otherwise if path is None or (isinstance(path, str) and not path) else path)


def slug(name: str) -> str:
    """A name as the name of one file or folder, on every file system.

    Characters that file systems refuse become "_". A name that is too long, empty, reserved, or begins or ends with a
    dot is cut, and gets a hash of the whole name.
    """
    plain = re.sub(r"[^\w.,+=@-]+", "_", name)
    head = plain.strip(".").encode(errors="replace")[:LONGEST_NAME].decode(errors="ignore")
    if head and head == plain and not RESERVED.fullmatch(plain):
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{head or '_'}-{digest[:12]}"


# ---- writing


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file completely or not at all. Missing folders are created.

    Parameters
    ----------
    path : path
        An existing file of this name is replaced. What a killed process left of an earlier write is deleted.
    data : bytes

    Raises
    ------
    OSError
        If the file cannot be written. The message names it. An existing file stays unchanged, and no temporary file
        is left.
    """
    path = as_path(path)
    remove_leftovers(path.parent, path.name)
    for tries_left in reversed(range(TRIES)):
        # os.replace needs the same disk, so the same folder.
        temporary = path.with_name(f".{slug(path.name)}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                _lock(file, wait=True)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:
                    os.replace(temporary, path)  # while it is locked
            if fcntl is None:  # Windows replaces no open file
                os.replace(temporary, path)
            return
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, FileNotFoundError) and tries_left:
                continue  # another process took the file for a leftover, since it was not locked yet
            if not isinstance(error, OSError):
                raise
            full = error.errno == errno.ENOSPC
            advice = "free some space or choose another folder" if full else "choose another place"
            raise OSError(error.errno, f"cannot write {path} ({error.strerror}): {advice}") from error


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files of `write_atomically` that killed processes left in a folder.

    What a living process writes is kept. It holds a lock, and Windows deletes no open file.

    Parameters
    ----------
    folder : Path
    name : str, optional
        The file that was to be written. None takes all.
    """
    target = "*" if name is None else glob.escape(slug(name))
    for leftover in folder.glob(f".{target}.{TOKEN}.tmp"):
        with suppress(OSError):
            if fcntl is None:
                leftover.unlink()
                continue
            with open(leftover, "r+b") as file:  # NFS locks no file that is only read
                _lock(file, wait=False)
                leftover.unlink()


def _lock(file: IO[bytes], wait: bool) -> None:
    """Lock an open file. With ``wait`` a file system that knows no locks is no error."""
    if fcntl is None:
        return
    with suppress(OSError) if wait else nullcontext():
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def json_digest(content: Any) -> str:
    """The sha256, in hexadecimal digits, of content as JSON with sorted names and without spaces."""
    return hashlib.sha256(_compact(content)).hexdigest()


def _compact(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def as_json(content: Any, what: str) -> Any:
    """Content as it is read back from a JSON file.

    Parameters
    ----------
    content : Any
    what : str
        What it is, for the message.

    Raises
    ------
    ValueError
        If it contains what JSON lacks, such as NaN or a tensor.
    """
    try:
        return json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        reason = first_sentence(error)
        raise ValueError(f"{what} must contain only plain JSON types and finite numbers ({reason})") from error


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its digest, atomically.

    Parameters
    ----------
    path : path
    content : mapping

    Raises
    ------
    ValueError
        If the content contains what JSON lacks.
    OSError
        As `write_atomically`.
    """
    write_atomically(path, json_bytes(content, f"the content of {path}"))


def json_bytes(content: Mapping[str, Any], what: str) -> bytes:
    """A JSON object with its digest, as a file. ValueError as in `as_json`."""
    plain = as_json(content, what)
    return (json.dumps(plain | {DIGEST: json_digest(plain)}, indent=1) + "\n").encode()


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file with its digest, atomically. The same content always gives the same bytes.

    Parameters
    ----------
    path : path
    tensors : mapping
    metadata : mapping
        Its "format" is the name of the kind of file.

    Returns
    -------
    str
        The digest: sha256 of the file's header without the digest, as compact JSON with sorted names, and of the
        bytes of the tensors.

    Raises
    ------
    OSError
        As `write_atomically`.
    """
    # Copies, since safetensors refuses tensors that share memory.
    as_stored = {"memory_format": torch.contiguous_format}
    on_cpu = {name: tensor.detach().cpu().clone(**as_stored) for name, tensor in tensors.items()}
    header, data = _split(to_safetensors(on_cpu, dict(metadata)))
    digest = header["__metadata__"][DIGEST] = hashlib.sha256(_compact(header) + data).hexdigest()
    start = _compact(header)  # sorted, since safetensors writes its header in random order
    start += b" " * (-len(start) % 8)  # keeps the tensors after it aligned
    write_atomically(path, len(start).to_bytes(8, "little") + start + data)
    return digest


def _split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes of its tensors. ValueError if it is no such file."""
    end = 8 + int.from_bytes(blob[:8], "little")
    try:
        return parse_json(blob[8:end]), blob[end:]
    except ValueError as error:
        raise ValueError("it is no whole safetensors file") from error


def check_tensor_path(path: str | os.PathLike) -> Path:
    """The path of a safetensors file that is to be written.

    Raises
    ------
    ValueError
        If there is no name, or it ends like that of another kind of file.
    """
    path = as_path(path)
    if not path.name:
        raise ValueError(f"{path} is no name of a file: give one that ends in .safetensors")
    if path.suffix.lower() not in ("", ".safetensors"):
        raise ValueError(f"{path} would be a safetensors file: end its name in .safetensors, not in {path.suffix}")
    return path


# ---- reading


def damaged(path: Path, why: object, advice: str = "run again") -> ValueError:
    """The error for a stored file that cannot be used. ``advice`` says what to do after deleting it."""
    reason = first_sentence(why if isinstance(why, Exception) else ValueError(why))
    return ValueError(f"{path} is damaged ({reason}): delete it and {advice}")


def parse_json(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises
    ------
    ValueError
        If the text holds none, or holds NaN or infinity, which JSON lacks.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it contains {constant}")

    try:
        content = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def read_json(path: Path, *kinds: type, advice: str = "run again", sealed: bool = True) -> dict[str, Any]:
    """The object in a JSON file, without its digest.

    Parameters
    ----------
    path : Path
    kinds : type
        The content must fit each of these `msgspec.Struct`. Keys that none of them names are kept.
    advice : str
        What to do after deleting a damaged file.
    sealed : bool
        False for a file that `write_json` may not have written: a digest is checked if there is one.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If the file is damaged or does not fit. The message says to delete it.
    FileNotFoundError
        If there is no such file.
    """
    try:
        _check_regular(path)
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON} bytes")
        content = parse_json(path.read_bytes())
        digest = content.pop(DIGEST, None)
        if digest is None and sealed:
            raise ValueError("it has no digest, as in another version")
        if digest is not None and digest != json_digest(content):
            raise ValueError("its content was changed after it was written")
        fit(content, *kinds)
    except ValueError as error:
        raise damaged(path, error, advice) from error
    return content


def _check_regular(path: Path) -> None:
    """ValueError for a folder, a pipe or a device. A pipe would never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")


def fit(content: Any, *kinds: type) -> None:
    """Check that content fits each of these `msgspec.Struct`. ValueError if it does not."""
    try:
        for kind in kinds:
            msgspec.convert(content, kind)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def read_tensors(path: Path, kind: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file that `write_tensors` wrote.

    Parameters
    ----------
    path : Path
    kind : str
        The "format" that its metadata must have.
    advice : str
        What to do after deleting a damaged file.

    Returns
    -------
    tensors : dict
        On the CPU.
    metadata : dict
        With the digest as "sha256".

    Raises
    ------
    ValueError
        If the file is damaged, of another version, or of another kind. Only in the last case its message does not say
        to delete it.
    FileNotFoundError
        If there is no such file.
    """
    try:
        _check_regular(path)
        blob = path.read_bytes()
        if path.suffix.lower() not in ("", ".safetensors") and blob[8:9] != b"{":
            raise OtherKind("is no safetensors file")
        header, data = _split(blob)
        metadata = header.get("__metadata__") or {}
        found, stored = metadata.get("format"), metadata.pop(DIGEST, None)
        if found is None and stored is None:
            from_safetensors(blob)  # without a right header it is damaged
            raise OtherKind("is not from gmlib")
        if stored != hashlib.sha256(_compact(header) + data).hexdigest():
            raise ValueError("its content was changed after it was written")
        if isinstance(found, str) and _without_version(found) != _without_version(kind):
            raise OtherKind(f"is a {_without_version(found)}")
        if found != kind:
            raise ValueError(f"its format is {found!r} and not {kind!r} of this version")
        return from_safetensors(blob), metadata | {DIGEST: stored}
    except OtherKind as error:
        raise OtherKind(f"{path} {error}, and no {_without_version(kind)}: name another file") from None
    except (SafetensorError, ValueError, AttributeError) as error:
        raise damaged(path, error, advice) from error


class OtherKind(ValueError):
    """A good file of another kind than the one to be read."""


def _without_version(kind: str) -> str:
    return kind.rstrip("0123456789").rstrip("-").replace("-", " ", 1)
