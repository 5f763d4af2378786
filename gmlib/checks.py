"""Checks of arguments that many modules share, and their error messages."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

Value = TypeVar("Value")
MOST_VALUES = 10_000  # in a list of methods, networks or images per class


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
    message = f"unknown {kind} {shown(name)}: choose from {', '.join(known)}"
    if otherwise:
        message += f", or {otherwise}"
    nearest = _nearest(known, name) if isinstance(name, str) else None
    if nearest:
        message += f"; did you mean {nearest!r}?"
    return ValueError(message)


def _nearest(known: Iterable[str], name: str) -> str | None:
    """The known name most similar to `name`, ignoring case; None if no name is similar."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name[:100].casefold(), folded, n=1)  # slow for long texts
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
) -> Any:
    """Check that an argument is a finite number within bounds.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Any
        Numbers of numpy and tensors of one number are taken too.
    whole : bool
        True allows only whole numbers. A ``bool`` is never a number here.
    least : float
        The smallest value allowed.
    above, below : float
        The value must be strictly between them.
    otherwise : str, optional
        What else is allowed, for the message.

    Returns
    -------
    int or float
        The value as a number of Python, which JSON can store.

    Raises
    ------
    ValueError
        If the value does not fit. The message says what to give.
    """
    number = plain(value)
    fits = isinstance(number, int if whole else (int, float)) and not isinstance(number, bool)
    if fits and _is_finite(number) and number >= least and above < number < below:
        return number
    expected = "a whole number" if whole else "a positive number" if above == 0 else "a number"
    if least > -math.inf:
        expected += f" of at least {least:g}"
    if below < math.inf:
        expected += f" and less than {below:g}"
    if otherwise:
        expected += f", or {otherwise}"
    raise ValueError(f"{name}={shown(value)} does not fit: give {expected}")


def _is_finite(number: float) -> bool:
    """False also for whole numbers that are too large for a float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_flag(name: str, value: Any) -> bool:
    """Check that an argument is True or False, or one of numpy's two, and return it as a ``bool``.

    Raises
    ------
    ValueError
        If it is something else.
    """
    flag = plain(value)
    if not isinstance(flag, bool):
        raise ValueError(f"{name}={shown(value)} does not fit: give True or False")
    return flag


def check_function(name: str, value: Any, arguments: str) -> None:
    """Check that an argument is a function or None. ``arguments`` says what it is called with.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if value is not None and not callable(value):
        raise ValueError(f"{name}={shown(value)} does not fit: give a function of {arguments}, or None")


def plain(value: Any) -> Any:
    """Turn one number of numpy or torch into one of Python, which JSON can store. Other values stay unchanged."""
    is_single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_single else value


def shown(value: Any) -> str:
    """A value for a message: its ``repr`` in one line, cut after 60 characters, or the type of an array."""
    text = f"<{type(value).__name__}>"
    if not getattr(value, "ndim", 0):
        with suppress(Exception):  # any class may fail here, and so does an int of more than 4300 digits
            text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


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
    ValueError for more than ``MOST_VALUES``.
    """
    if isinstance(values, str):
        words = [word.strip() for word in values.split(",")]
        return [int(word) if word.isdecimal() and len(word) < 20 else word for word in words]
    values = plain(values)
    if not isinstance(values, Collection):
        return [values]
    if len(values) > MOST_VALUES:
        raise ValueError(f"there are {len(values)} values: give at most {MOST_VALUES}")
    return list(values)
