"""The error tree is what its docstring draws, and errors say what to do next."""

from __future__ import annotations

import pickle
import re

import pytest

from aioserving import errors


def drawn_tree() -> dict[str, str]:
    """Child -> parent, read from the drawing in the module's docstring."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^    ((?:[│ ]   |[├└]── )*)([A-Z]\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            if depth:
                parents[match[2]] = path[depth - 1]
    return parents


def test_the_drawing_is_the_tree() -> None:
    """Every class is drawn under the class that it derives from."""
    drawn = drawn_tree()
    actual = {
        kind.__name__: kind.__bases__[0].__name__
        for kind in (getattr(errors, name) for name in errors.__all__)
        if kind is not errors.ServingError
    }
    assert drawn == actual


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"ServingError"}))
def test_every_error_is_a_serving_error_and_pickles(name: str) -> None:
    """One `except ServingError` catches all, and errors cross processes whole."""
    kind = getattr(errors, name)
    assert issubclass(kind, errors.ServingError)
    again = pickle.loads(pickle.dumps(kind("why")))
    assert type(again) is kind
    assert str(again) == "why"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.DeadlineExceededError, TimeoutError),
        (errors.UnavailableError, ConnectionError),
        (errors.InvalidInputError, ValueError),
        (errors.ModelNotFoundError, LookupError),
        (errors.SignatureNotFoundError, LookupError),
        (errors.DecodeError, ValueError),
        (errors.UnsupportedTypeError, TypeError),
        (errors.ClientClosedError, RuntimeError),
    ],
)
def test_errors_are_what_python_calls_them(kind: type[Exception], builtin: type[Exception]) -> None:
    """Code that knows only the built-in classes catches them too."""
    assert issubclass(kind, builtin)


def test_the_text_tells_the_call() -> None:
    """Method, model, endpoint, code and the server's words are all in the message."""
    error = errors.NotFoundError("gone", model="digits", endpoint="10.0.0.1:8500", method="Predict")
    assert str(error) == "Predict of model 'digits' at 10.0.0.1:8500: NOT_FOUND: gone"
    assert str(errors.ResourceExhaustedError("", endpoint="e:1")) == (
        "at e:1: RESOURCE_EXHAUSTED: the server gave no reason"
    )
    assert str(errors.InvalidInputError("just the text")) == "just the text"
