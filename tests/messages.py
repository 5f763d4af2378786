"""A check for error messages: one sentence that says what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refuses(kind: type[Exception], *words: str) -> Iterator[None]:
    """The lines inside raise an error of this kind, in one sentence that contains all these words."""
    with pytest.raises(kind) as error:
        yield
    message = str(error.value)
    assert "\n" not in message and ". " not in message and len(message) > 20, message
    assert all(word in message for word in words), message
