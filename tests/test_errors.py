"""The error tree is what its docstring draws, and errors say what to do next."""

from __future__ import annotations

import pickle
import re

import pytest

from aioserving import errors

ERRORS = [name for name in errors.__all__ if name.endswith("Error")]

#: What errors are made from that are not made from a text.
LISTED = {
    "InvalidConfigError": [errors.ConfigProblem("why", model="digits", line=3, column=1)],
    "ModelLoadError": [errors.LoadFailure("e:1", "digits", 1, "why")],
}


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
        for kind in (getattr(errors, name) for name in ERRORS)
        if kind is not errors.ServingError
    }
    assert drawn == actual


@pytest.mark.parametrize("name", sorted(set(ERRORS) - {"ServingError"}))
def test_every_error_is_a_serving_error_and_pickles(name: str) -> None:
    """One `except ServingError` catches all, and errors cross processes whole."""
    kind = getattr(errors, name)
    assert issubclass(kind, errors.ServingError)
    error = kind(LISTED.get(name, "why"))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert str(again).endswith("why")
    assert vars(again) == vars(error)


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


def test_errors_that_list_what_is_wrong() -> None:
    """The facts are there as data, and all of them in the text."""
    where = [errors.LoadFailure("e:1", "a", 1, "X"), errors.LoadFailure("e:1", "b", 2, "Y")]
    error = errors.ModelLoadError(where)
    assert (error.model, error.endpoint, error.failures) == (None, "e:1", tuple(where))
    assert "version 1 of 'a' at e:1 failed to load: X; version 2 of 'b'" in str(error)
    problem = errors.ConfigProblem("is wrong", model="a", line=3, column=4)
    assert str(problem) == "line 3, column 4: model 'a': is wrong"
    assert str(errors.ConfigProblem("is wrong")) == "is wrong"


def test_the_text_tells_the_call() -> None:
    """Method, model, endpoint, code and the server's words are all in the message."""
    error = errors.NotFoundError("gone", model="digits", endpoint="10.0.0.1:8500", method="Predict")
    assert str(error) == "Predict of model 'digits' at 10.0.0.1:8500: NOT_FOUND: gone"
    assert str(errors.ResourceExhaustedError("", endpoint="e:1")) == (
        "at e:1: RESOURCE_EXHAUSTED: the server gave no reason"
    )
    assert str(errors.InvalidInputError("just the text")) == "just the text"
