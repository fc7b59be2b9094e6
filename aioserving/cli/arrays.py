"""Inputs of models from what is typed, from files, or from thin air; and outputs to files.

    images=@images.npy      one input, from a file of numpy's
    x=[1,2,3]               one input, as JSON
    '{"x": [1, 2, 3]}'      all inputs, as JSON; also as the body of a REST request has them
    @inputs.npz  @inputs.json  -      all inputs, from a file or from standard input

Whether they fit is for the signature to say (`aioserving.signature`), which also gives lists their dtype.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving import Signature, TensorSpec
    from aioserving._types import Array

__all__ = ["generate", "parse_json", "parse_shapes", "read_inputs", "read_source", "save_arrays"]

_NAMED: Final = re.compile(r"([A-Za-z_][\w./:-]*)=(.*)", re.DOTALL)
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz"


# -- reading ------------------------------------------------------------------------------------------------


def read_inputs(arguments: Sequence[str], signature: Signature | None = None) -> dict[str, Any]:
    """The inputs that a command line gives.

    Args:
        arguments: as the module's docstring shows them; a later one overrides an earlier one.
        signature: of the model, to tell text from JSON, to know what a value without a name is, and to give
            a single row its batch axis; None if it is not known.

    Returns:
        Values by input name: arrays as they are, JSON as lists, with bytes where it has ``{"b64": ...}``.

    Raises:
        CommandError: a file cannot be read, or what is in it or was typed is neither of the above.
    """
    inputs: dict[str, Any] = {}
    for argument in arguments:
        named = None if argument[:1] in ("{", "[", "@", '"') else _NAMED.fullmatch(argument)
        if named is not None:
            spec = signature.inputs.get(named[1]) if signature is not None else None
            inputs[named[1]] = _value(named[1], named[2], spec)
            continue
        found = read_source(argument, "the inputs")
        if isinstance(found, Mapping):
            inputs.update(_rest_body(found, signature))
        else:
            inputs[_only(signature, argument)] = found
    if signature is not None:
        inputs = {name: _with_batch(value, signature.inputs.get(name)) for name, value in inputs.items()}
    return inputs


def read_source(argument: str, what: str) -> Any:
    """What ``-`` (standard input), ``@FILE`` or a JSON text stands for.

    Returns:
        What the JSON says; a dict of arrays for ``.npz``; an array for ``.npy``.

    Raises:
        CommandError: it cannot be read.
    """
    if argument in ("-", "@-"):
        return _standard_input(what)
    if argument.startswith("@"):
        return _file(argument[1:])
    return parse_json(argument, what)


def parse_json(text: str, where: str) -> Any:
    """What a JSON text says; ``{"b64": "..."}`` in it are bytes.

    Raises:
        CommandError: it is no JSON; with line and column.
    """
    try:
        return json.loads(text, object_hook=_bytes_in)
    except json.JSONDecodeError as error:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise CommandError(
            f"{where}: {shown!r} is no JSON: {error.msg}, line {error.lineno}, column {error.colno}",
            ExitCode.INVALID,
        ) from error
    except (binascii.Error, ValueError) as error:
        raise CommandError(f"{where}: a value of 'b64' is no base64: {error}", ExitCode.INVALID) from error


def _bytes_in(found: dict[str, Any]) -> Any:
    if found.keys() == {"b64"} and isinstance(found["b64"], str):
        return base64.b64decode(found["b64"], validate=True)
    return found


def _standard_input(what: str) -> Any:
    import numpy as np

    data = sys.stdin.buffer.read()
    if data.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        try:
            return _loaded(np.load(io.BytesIO(data), allow_pickle=False))
        except (ValueError, OSError) as error:
            raise CommandError(f"standard input: {error}", ExitCode.FILE) from error
    try:
        return parse_json(data.decode(), f"standard input, as {what}")
    except UnicodeDecodeError as error:
        raise CommandError(f"standard input: {error}", ExitCode.FILE) from error


def _file(path: str) -> Any:
    import numpy as np

    if not path:
        raise CommandError("@ is followed by the name of a file", ExitCode.USAGE)
    try:
        if path.endswith((".npy", ".npz")):
            return _loaded(np.load(path, allow_pickle=False))
        with open(path, encoding="utf-8") as file:
            return parse_json(file.read(), path)
    except (ValueError, EOFError) as error:  # of numpy, and UnicodeDecodeError
        raise CommandError(f"{path}: {error}", ExitCode.FILE) from error


def _loaded(found: Any) -> Any:
    if not hasattr(found, "files"):
        return found
    with found:
        return {name: found[name] for name in found.files}


def _value(name: str, text: str, spec: TensorSpec | None) -> Any:
    """The value of one input, which was typed behind its name."""
    if text.startswith("@") or text == "-":
        found = read_source(text, f"input {name!r}")
        if isinstance(found, Mapping):
            if name in found:
                return found[name]
            if len(found) == 1:
                return next(iter(found.values()))
            raise CommandError(
                f"input {name!r}: {text[1:]} has {', '.join(map(repr, found)) or 'nothing'}", ExitCode.INVALID
            )
        return found
    if spec is not None and spec.type_name == "string" and text[:1] not in ("[", "{", '"'):
        return text
    return parse_json(text, f"input {name!r}")


def _rest_body(found: Mapping[str, Any], signature: Signature | None) -> Mapping[str, Any]:
    """Inputs by name, also from the body of a REST request ("instances" by row, "inputs" by column)."""
    names = set(signature.inputs) if signature is not None else set()
    rest = [key for key in ("instances", "inputs") if key in found and key not in names]
    if len(rest) != 1 or set(found) - {rest[0], "signature_name"}:
        return found
    body = found[rest[0]]
    if rest[0] == "inputs":
        return body if isinstance(body, Mapping) else {_only(signature, "'inputs'"): body}
    if not isinstance(body, list):
        raise CommandError("'instances' is a list of rows", ExitCode.INVALID)
    if not body or not all(isinstance(row, Mapping) for row in body):
        return {_only(signature, "'instances'"): body}
    if any(row.keys() != body[0].keys() for row in body):
        raise CommandError("'instances' have different inputs", ExitCode.INVALID)
    return {name: [row[name] for row in body] for name in body[0]}


def _only(signature: Signature | None, argument: str) -> str:
    """Name of the one input that a value without a name is for."""
    names = list(signature.inputs) if signature is not None else []
    if len(names) == 1:
        return names[0]
    shown = argument if len(argument) <= 40 else f"{argument[:37]}..."
    has = f"the inputs are {', '.join(map(repr, names))}" if names else "the signature is not known"
    raise CommandError(f"{shown}: which input is it? write NAME=..., {has}", ExitCode.INVALID)


def _with_batch(value: Any, spec: TensorSpec | None) -> Any:
    """`value`, as the one row of a batch if it has one dimension too few."""
    import numpy as np

    if spec is None or not spec.shape or spec.shape[0] != -1:
        return value
    if isinstance(value, (str, bytes)):
        rank = 0
    else:
        try:
            rank = np.ndim(value)
        except ValueError:  # ragged; the signature says so better
            return value
    if rank != len(spec.shape) - 1:
        return value
    return value[None] if isinstance(value, np.ndarray) else [value]


# -- generating ---------------------------------------------------------------------------------------------


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, from ``NAME=2,3``; ``NAME=`` is a scalar.

    Raises:
        CommandError: a text is none.
    """
    shapes = {}
    for text in texts:
        name, equals, sizes = text.partition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            equals = ""
        if not name or not equals or any(size < 0 for size in shapes[name]):
            raise CommandError(f"{text!r} is no shape: write NAME=2,3", ExitCode.USAGE)
    return shapes


def generate(
    signature: Signature,
    kind: str,
    *,
    batch: int = 1,
    seed: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Array]:
    """Inputs that fit a signature and mean nothing.

    Args:
        signature: of the model.
        kind: ``"zeros"`` (and empty strings), or ``"random"``: floats from 0 to 1, integers from 0 to 9,
            either bool, strings of eight letters.
        batch: size of an unknown first dimension; other unknown ones get 1.
        seed: of the random numbers; None for others every time.
        shapes: shapes of single inputs, by name.

    Raises:
        CommandError: a shape is for no input, or does not fit.
        UnsupportedTypeError: numpy needs `ml_dtypes` for a dtype, which is not installed.
    """
    import numpy as np

    arrays = signature.example_inputs(batch)
    for name, shape in (shapes or {}).items():
        if name not in arrays:
            raise CommandError(
                f"--shape {name}: there is no such input; there are {', '.join(map(repr, arrays)) or 'none'}",
                ExitCode.INVALID,
            )
        if not signature.inputs[name].fits(shape):
            raise CommandError(
                f"--shape {name}: {shape} does not fit {signature.inputs[name]}", ExitCode.INVALID
            )
        arrays[name] = np.full(shape, b"" if arrays[name].dtype.kind == "O" else 0, arrays[name].dtype)
    if kind == "zeros":
        return arrays
    random = np.random.default_rng(seed)
    return {name: _random(random, array) for name, array in arrays.items()}


def _random(random: Any, like: Array) -> Array:
    import numpy as np

    kind = like.dtype.kind
    if kind == "O":
        filled = np.empty(like.shape, object)
        letters = random.integers(0, len(_LETTERS), (like.size, 8))
        filled.ravel()[:] = [bytes(_LETTERS[place] for place in row) for row in letters]
        return filled
    if kind in "iub":
        drawn: Array = random.integers(0, 2 if kind == "b" else 10, like.shape)
        return drawn.astype(like.dtype)
    if kind == "c":
        both: Array = random.random(like.shape) + 1j * random.random(like.shape)
        return both.astype(like.dtype)
    uniform: Array = random.random(like.shape)
    return uniform.astype(like.dtype)


# -- writing ------------------------------------------------------------------------------------------------


def save_arrays(path: str, arrays: Mapping[str, Array]) -> None:
    """Write arrays to ``.npz``, or the only one to ``.npy``, in one step: nobody reads half a file.

    Raises:
        CommandError: several arrays for ``.npy``, another ending, or what no such file holds.
        OSError: the file cannot be written.
    """
    import numpy as np

    storable = {name: _storable(name, array) for name, array in arrays.items()}
    write: Callable[[Any], None]
    if path.endswith(".npz"):

        def write(file: Any) -> None:  # as numpy.savez does, which takes no array called "file"
            with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                for name, array in storable.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)

    elif path.endswith(".npy"):
        if len(storable) != 1:
            raise CommandError(
                f"{path}: there are {len(storable)} outputs ({', '.join(storable)}), a .npy holds one",
                ExitCode.USAGE,
                advice="choose one with --output NAME, or write a .npz",
            )

        def write(file: Any) -> None:
            np.save(file, next(iter(storable.values())), allow_pickle=False)

    else:
        raise CommandError(f"{path}: write .npy, .npz or .json", ExitCode.USAGE)
    write_atomically(path, write)


def write_atomically(path: str, write: Callable[[Any], None]) -> None:
    """Let `write` fill a new file, which then takes the place of `path`.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    try:
        with open(handle, "wb") as file:
            write(file)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _storable(name: str, array: Array) -> Array:
    """An array that needs no pickle: strings as fixed-width bytes."""
    import numpy as np

    if array.dtype.kind != "O":
        return array
    if any(isinstance(item, bytes) and item.endswith(b"\0") for item in array.flat):
        raise CommandError(
            f"output {name!r}: numpy's files cut the NUL bytes at the ends of its strings; write .json",
            ExitCode.INVALID,
        )
    return np.array(array.tolist(), dtype=np.bytes_).reshape(array.shape)
