"""What every module checks, and says, in the same way."""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection
from typing import Any

import numpy as np


def choose(known: dict[str, Any], kind: str, name: str, otherwise: str = "") -> Any:
    """known[name], or a ValueError that lists the known names."""
    if not isinstance(name, str) or name not in known:
        shown = repr(name) if isinstance(name, (str, int, float, list, tuple)) else f"of type {type(name).__name__}"
        raise ValueError(
            f"unknown {kind} {shown}: choose from {', '.join(known)}" + (f", or {otherwise}" if otherwise else "")
        )
    return known[name]


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
    """ValueError, which says what to give, unless `value` is a finite (whole) number, >= least, > above and < below."""
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if fits and value >= least and above < value < below:
        return
    wanted = "a whole number" if whole else "a positive number" if above == 0 else "a number"
    wanted += f" of at least {least:g}" if least > -math.inf else ""
    wanted += f" and less than {below:g}" if below < math.inf else ""
    raise ValueError(f"{name}={value!r} does not fit: give {wanted}" + (f", or {otherwise}" if otherwise else ""))


def plain(value: Any) -> Any:
    """A number of numpy's as Python's own, which JSON can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def require(module: str, extra: str) -> Any:
    """Import a module that comes with an extra of gmlib; ImportError, which names the extra, if it is not installed."""
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
    """An error's first sentence, without its full stop."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__


def as_list(values: Any) -> list:
    """A list from a list, from one value, or from words with commas: "DC, M" as a command line gives it."""
    if isinstance(values, str):
        words = [word.strip() for word in values.split(",")]
        return [int(word) if word.isdecimal() else word for word in words]
    return list(values) if isinstance(values, Collection) else [values]
