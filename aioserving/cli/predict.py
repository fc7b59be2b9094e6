"""`aioserving predict`: run a model on inputs from the command line, files, or out of nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli import arrays
from aioserving.cli.common import (
    Command,
    Settings,
    complete_files,
    connection_options,
    model_options,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode
from aioserving.cli.output import Output, dump_json, jsonable

if TYPE_CHECKING:
    from aioserving import PredictResult
    from aioserving._types import Array

__all__ = ["command"]


@click.command(
    cls=Command,
    examples="""
        aioserving predict -m half_plus_two x=[1,2,3] -t 127.0.0.1:8500
        aioserving predict -m digits images=@images.npy --out scores.npz -t 127.0.0.1:8500
        aioserving predict -m digits --random --seed 1 --batch 32 -t 127.0.0.1:8500
        aioserving predict -m digits --zeros --shape images=4,784 --json -t 127.0.0.1:8500
        echo '{"instances": [[1, 2], [3, 4]]}' | aioserving predict -m pairs - -t 127.0.0.1:8500
        aioserving predict -m digits --label stable @inputs.npz --output scores -t 127.0.0.1:8500
    """,
)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--zeros", "generated", flag_value="zeros", help="Zeros for inputs that are not given.")
@click.option("--random", "generated", flag_value="random", help="Random values for them.")
@click.option("--seed", type=int, metavar="NUMBER", help="Seed of the random values.")
@click.option(
    "--batch", type=click.IntRange(min=0), default=1, metavar="ROWS", help="Rows of generated inputs.  [1]"
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=2,3", help="Shape of a generated input.")
@click.option("--output", "filter_", multiple=True, metavar="NAME", help="Ask for this output only.")
@click.option(
    "--out",
    metavar="FILE",
    help="Write the outputs to a .npz, .npy or .json file.",
    shell_complete=complete_files,
)
@click.option(
    "--rows", type=click.IntRange(min=0), default=20, metavar="NUMBER", help="Rows to show; 0: all.  [20]"
)
@click.option("--no-check", is_flag=True, help="Send inputs as they are, without asking for the signature.")
@model_options
@connection_options
@output_options
@pass_settings
def command(
    settings: Settings,
    inputs: tuple[str, ...],
    generated: str | None,
    seed: int | None,
    batch: int,
    shapes: tuple[str, ...],
    filter_: tuple[str, ...],
    out: str | None,
    rows: int,
    no_check: bool,
) -> None:
    """Run a model.

    An INPUT is NAME=JSON, NAME=@FILE.npy, or all inputs at once: JSON, @FILE.json, @FILE.npz, or - for
    standard input. A model with one input needs no name. {"b64": "..."} in JSON are bytes. The body of a REST
    request ({"instances": ...}) is understood, too. A single row may come without its batch axis.

    --zeros and --random make up the inputs that are not given: floats from 0 to 1, integers from 0 to 9,
    strings of eight letters.
    """
    if out is not None and not out.endswith((".npz", ".npy", ".json")):
        raise CommandError(f"{out}: write .npy, .npz or .json", ExitCode.USAGE)
    if shapes and generated is None:
        raise CommandError("--shape is for inputs that --zeros or --random make up", ExitCode.USAGE)
    if no_check and generated is not None:
        raise CommandError(
            "inputs are made up by the signature, which --no-check does not ask for", ExitCode.USAGE
        )
    name = settings.model
    with settings.client() as client:
        model = client.model(
            name,
            version=settings.version,
            version_label=settings.label,
            signature_name=settings.signature,
        )
        if no_check:
            values = arrays.read_inputs(inputs)
        else:
            signature = model.get_model_metadata().signature(settings.signature)
            values = arrays.read_inputs(inputs, signature)
            if generated is not None:
                wanted = arrays.generate(
                    signature, generated, batch=batch, seed=seed, shapes=arrays.parse_shapes(shapes)
                )
                values = {**wanted, **values}
            elif not values and any(spec.default is None for spec in signature.inputs.values()):
                takes = ", ".join(f"{spec.name}: {spec}" for spec in signature.inputs.values())
                raise CommandError(
                    f"no inputs; {name}/{signature.name} takes {takes}",
                    ExitCode.USAGE,
                    advice="give NAME=JSON or NAME=@FILE.npy, or --zeros, --random",
                )
        started = time.perf_counter()
        result = model.predict(values, output_filter=filter_ or None, validate=not no_check)
        milliseconds = (time.perf_counter() - started) * 1000
    if out is not None and out.endswith(".json"):
        text = dump_json(jsonable(_answer(result, milliseconds))) + "\n"
        arrays.write_atomically(out, lambda file: file.write(text.encode()))
    elif out is not None:
        arrays.save_arrays(out, result)
    if settings.output.as_json:
        settings.output.json(_answer(result, milliseconds))
    elif out is not None:
        described = ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in result.items())
        settings.output.line(f"{out}: {described}")
    else:
        spec = result.model_spec
        title = f"{spec.name} version {spec.version}, {spec.signature_name}, {milliseconds:.1f} ms"
        show(settings.output, result, title, rows)


def _answer(result: PredictResult, milliseconds: float) -> dict[str, Any]:
    spec = result.model_spec
    return {
        "model": spec.name,
        "version": spec.version,
        "signature": spec.signature_name,
        "milliseconds": round(milliseconds, 3),
        "outputs": dict(result),
    }


def show(output: Output, found: Mapping[str, Array], title: str, limit: int) -> None:
    """Arrays as a table with a line for each row that they have in common; the others one by one.

    Args:
        output: where to.
        found: arrays by name.
        title: a line above.
        limit: rows to show at most; 0: all.
    """
    sizes = [array.shape[0] for array in found.values() if array.ndim]
    # The most common first dimension is the batch's.
    batch = max(set(sizes), key=sizes.count) if sizes else None
    together = {name: array for name, array in found.items() if array.ndim and array.shape[0] == batch}
    if together:
        count = next(iter(together.values())).shape[0]
        shown = count if limit == 0 else min(count, limit)
        output.table(
            ("row", *together),
            [(row, *(_cell(array[row]) for array in together.values())) for row in range(shown)],
            title=title,
            right=("row", *(name for name, array in together.items() if array.ndim == 1)),
        )
        if shown < count:
            output.line(f"... {count - shown} more rows; --rows 0 shows all, --json and --out have them")
    elif title:
        output.line(title)
    for name, array in found.items():
        if name not in together:
            output.line(f"{name}: {array.dtype} {array.shape}: {_cell(array)}")


def _cell(value: Any) -> str:
    """A value of an array as text: long ones with what is in the middle left out."""
    import numpy as np

    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind == "O":
            items: Sequence[Any] = value.ravel().tolist()
            text = ", ".join(_cell(item) for item in items[:8])
            return f"[{text}{', ...' if len(items) > 8 else ''}]"
        return np.array2string(value, threshold=8, edgeitems=3, precision=6, separator=", ")
    if isinstance(value, np.ndarray):
        return _cell(value[()])
    if isinstance(value, np.floating):
        return f"{value:.7g}"
    return str(value)
