"""Checks of arguments that many modules share, and their error messages."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


def choose(known: Mapping[str, Value], kind: str, name: str, otherwise: str = "") -> Value:
    """Look up a name that a caller gave.

    Parameters
    ----------
    known : mapping
        The known names and their values.
    kind : str
        What is being named, for the message.
    name : str
    otherwise : str, optional
        What else is allowed, for the message.

    Returns
    -------
    Value
        ``known[name]``.

    Raises
    ------
    ValueError
        If the name is unknown. The message lists the known names and suggests the nearest one if it is close.
    """
    if not isinstance(name, str) or name not in known:
        raise unknown(known, kind, name, otherwise)
    return known[name]


def unknown(known: Iterable[str], kind: str, name: Any, otherwise: str = "") -> ValueError:
    """The error that `choose` raises, with the same parameters."""
    shown = repr(name) if isinstance(name, (str, int, float, list, tuple)) else f"of type {type(name).__name__}"
    message = f"unknown {kind} {shown}: choose from {', '.join(known)}"
    if otherwise:
        message += f", or {otherwise}"
    nearest = _nearest(known, name) if isinstance(name, str) else None
    if nearest:
        message += f"; did you mean {nearest!r}?"
    return ValueError(message)


def _nearest(known: Iterable[str], name: str) -> str | None:
    """The known name most similar to `name`, ignoring case; None if no name is similar."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[close[0]] if close else None


def check_number(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    otherwise: str = "",
) -> None:
    """Check that an argument is a finite number within bounds.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Any
    whole : bool
        True allows only ``int``. A ``bool`` is never a number here.
    least : float
        The smallest value allowed.
    above, below : float
        The value must be strictly between them.
    otherwise : str, optional
        What else is allowed, for the message.

    Raises
    ------
    ValueError
        If the value does not fit. The message says what to give.
    """
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if fits and value >= least and above < value < below:
        return
    expected = "a whole number" if whole else "a positive number" if above == 0 else "a number"
    if least > -math.inf:
        expected += f" of at least {least:g}"
    if below < math.inf:
        expected += f" and less than {below:g}"
    if otherwise:
        expected += f", or {otherwise}"
    raise ValueError(f"{name}={value!r} does not fit: give {expected}")


def plain(value: Any) -> Any:
    """Turn a numpy number into a Python number, which JSON can store. Other values are returned unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def require(module: str, extra: str) -> Any:
    """Import a module that comes with an extra of gmlib.

    Parameters
    ----------
    module : str
        For instance "scipy.stats".
    extra : str
        The extra of pyproject.toml that installs it.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed. The message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{package} is needed for this: pip install 'gmlib[{extra}]'", name=package
        ) from None


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error message, without its full stop."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__


def as_list(values: Any) -> list:
    """Make a list of a collection, of one value, or of words with commas.

    A command line gives words with commas: ``"DC, M"`` becomes ``["DC", "M"]``, and ``"1,10"`` becomes ``[1, 10]``.
    """
    if isinstance(values, str):
        words = [word.strip() for word in values.split(",")]
        return [int(word) if word.isdecimal() else word for word in words]
    return list(values) if isinstance(values, Collection) else [values]
