"""`aioserving bench`: load a server and measure it; how is `load`'s, what is shown `bench_report`'s."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from aioserving.cli.common import (
    Command,
    DurationType,
    Settings,
    connection_options,
    model_options,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving import AsyncClient, Signature
    from aioserving.cli.load import Call, Load, Measurement, Plan

__all__ = ["command"]

#: Different inputs that are generated: with one alone, a server that remembers answers would look fast.
_DISTINCT = 8

#: How close a rate is searched for, as a share of the highest.
_RESOLUTION = 0.02


@click.command(
    cls=Command,
    examples="""
        aioserving bench -m digits -t 127.0.0.1:8500
        aioserving bench -m digits -t 127.0.0.1:8500 --concurrency 1:64 --batch-size 32 --plot digits.png
        aioserving bench -m digits -t 127.0.0.1:8500 --rate 100,200,400 --duration 30
        aioserving bench -m digits -t 127.0.0.1:8500 --rate 50:2000 --latency-limit 20ms
        aioserving bench -m digits -t 127.0.0.1:8500 --batched --concurrency 64,256 @rows.npz --json
    """,
)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option(
    "--concurrency",
    "-c",
    metavar="NUMBERS",
    help="Callers that wait for their answers: 8, or 1,8,64, or 1:64 (doubled), or 10:50:10.  [1,8,64]",
)
@click.option(
    "--rate", "-r", metavar="NUMBERS", help="Calls a second, made whatever comes back; written likewise."
)
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True,
              help="How calls at a rate arrive: at random, or evenly.")  # fmt: skip
@click.option("--duration", "-d", type=DurationType(), default="10", show_default=True, metavar="TIME",
              help="How long each load is measured.")  # fmt: skip
@click.option("--warmup", type=DurationType(), default="1", show_default=True, metavar="TIME",
              help="How long it goes on before that.")  # fmt: skip
@click.option("--batch-size", "-b", type=click.IntRange(min=1), default=1, show_default=True, metavar="ROWS",
              help="Rows of a call.")  # fmt: skip
@click.option("--batched", is_flag=True, help="Let the client gather concurrent calls (Model.batched).")
@click.option("--max-batch-size", type=click.IntRange(min=1), default=128, show_default=True, metavar="ROWS",
              help="Rows that --batched gathers.")  # fmt: skip
@click.option("--shape", "shapes", multiple=True, metavar="NAME=2,3", help="Shape of a generated input.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of generated inputs and of arrivals."
)
@click.option("--retries/--no-retries", default=False, help="Let the client try failed calls again.  [off]")
@click.option(
    "--latency-limit",
    type=DurationType(),
    metavar="TIME",
    help="Search between the lowest and the highest load for the most that keeps the latency below this.",
)
@click.option("--percentile", type=click.FloatRange(0, 100, min_open=True), default=99, show_default=True,
              help="Of the calls, for which --latency-limit goes.")  # fmt: skip
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write CSV; - for standard output.",
)
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Draw throughput and latency: .png, .svg or .pdf.")  # fmt: skip
@model_options
@connection_options
@output_options
@pass_settings
def command(settings: Settings, /, **options: Any) -> None:
    """Load a server and measure it.

    --concurrency is a closed loop: so many callers, each of which waits for its answer and calls again. It
    finds out what a server can do. --rate is an open loop: calls are made when they are due, whatever comes
    back, and latencies count from then: a server that falls behind looks as slow as its users find it.

    Inputs are random and fit the signature, or are given as for 'predict': NAME=@FILE.npy, @FILE.npz,
    @FILE.json; rows of files are taken in turn, --batch-size at a time.

    With --latency-limit the highest load is searched for, by bisection, whose latency stays below it, with at
    most 1 % of the calls failing; the exit code is 1 if there is none.
    """
    from aioserving.cli.bench_report import COLUMNS, FORMATS, csv_text, plot, table_rows
    from aioserving.cli.load import run_precisely

    wanted = _loads(options["concurrency"], options["rate"])
    plan = _plan(options)
    if options["latency_limit"] is not None and len(wanted) < 2:
        raise CommandError(
            "--latency-limit searches between two loads: give two, such as 1:256", ExitCode.USAGE
        )
    path: Path | None = options["plot_file"]
    if path is not None and path.suffix not in FORMATS:
        raise CommandError(f"--plot {path}: name a file that ends with {', '.join(FORMATS)}", ExitCode.USAGE)
    if path is not None:
        _check_plot()
    if settings.output.as_json and str(options["csv_file"]) == "-":
        raise CommandError("--json and --csv - both want standard output", ExitCode.USAGE)
    model = settings.model
    found: list[Measurement] = []
    best: list[float | None] = []
    told: dict[str, Any] = {}
    try:
        run_precisely(_run(settings, options, wanted, plan, found, best, told))
    finally:
        # Also what was measured until Ctrl-C, or until the server went away.
        if found:
            kind = found[0].load.kind
            name = "callers" if kind == "concurrency" else "rate"
            if not settings.output.as_json and str(options["csv_file"]) != "-":
                settings.output.table((name, *COLUMNS), table_rows(found), right=(name, *COLUMNS))
                _examples(settings, found)
    highest = best[0] if best else None
    if options["csv_file"] is not None:
        text = csv_text(found)
        if str(options["csv_file"]) == "-":
            click.echo(text, nl=False)
        else:
            options["csv_file"].write_text(text, encoding="utf-8")
    if path is not None:
        rows = f"{told['rows']:,} row{'s' * (told['rows'] != 1)} a call"
        plot(found, path, f"{model}, {rows}{', batched' if options['batched'] else ''}")
        settings.output.note(f"plot: {path}")
    if settings.output.as_json:
        document: dict[str, Any] = {
            "model": model,
            **told,
            "measurements": [item.to_dict() for item in found],
        }
        if best:
            document["latency_limit"] = {
                "seconds": options["latency_limit"], "percentile": options["percentile"], "highest": highest,
            }  # fmt: skip
        settings.output.json(document)
    if best:
        _tell_limit(settings, options, highest, wanted)
    if not any(item.calls for item in found):
        codes = ", ".join(sorted({code for item in found for code in item.errors})) or "no call ended in time"
        raise CommandError(f"no call succeeded: {codes}", ExitCode.NEGATIVE)


def _examples(settings: Settings, found: Sequence[Measurement]) -> None:
    for code, text in sorted({code: text for item in found for code, text in item.examples.items()}.items()):
        settings.output.note(f"{code}: {text}", style="yellow")


def _tell_limit(
    settings: Settings, options: dict[str, Any], highest: float | None, loads: Sequence[Load]
) -> None:
    from aioserving.histogram import duration_text

    what = f"p{options['percentile']:g} stays within {duration_text(options['latency_limit'])}"
    if highest is None:
        raise CommandError(f"not even with {loads[0]} {what}", ExitCode.NEGATIVE)
    unit = "callers" if loads[0].kind == "concurrency" else "calls/s"
    settings.output.line(f"up to {highest:g} {unit}, {what}")


def _loads(concurrency: str | None, rate: str | None) -> list[Load]:
    from aioserving.cli.load import parse_loads

    if concurrency is not None and rate is not None:
        raise CommandError("give --concurrency or --rate, not both", ExitCode.USAGE)
    kind: Literal["concurrency", "rate"] = "concurrency" if rate is None else "rate"
    try:
        return parse_loads(rate or concurrency or "1,8,64", kind)
    except ValueError as error:
        raise CommandError(f"--{kind}: {error}", ExitCode.USAGE) from error


def _plan(options: dict[str, Any]) -> Plan:
    from aioserving.cli.load import Plan

    try:
        return Plan(
            duration=options["duration"] or 0.0,
            warmup=options["warmup"] or 0.0,
            poisson=options["arrivals"] == "poisson",
            seed=options["seed"],
        )
    except ValueError as error:
        raise CommandError(f"--{error}", ExitCode.USAGE) from error


def _check_plot() -> None:
    """Find out before the measurement, not after it."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install 'aioserving[bench]'")


async def _run(
    settings: Settings,
    options: dict[str, Any],
    loads: Sequence[Load],
    plan: Plan,
    found: list[Measurement],
    best: list[float | None],
    told: dict[str, Any],
) -> None:
    from aioserving.cli.load import Bisection, acceptable, measure
    from aioserving.cli.load import Load as LoadType

    extra: dict[str, Any] = {} if options["retries"] else {"retry": None}
    async with settings.async_client(**extra) as client, contextlib.AsyncExitStack() as stack:
        call, rows, server_version = await _prepare(settings, options, client, stack)
        told.update(
            version=server_version, rows=rows, batched=options["batched"], targets=settings.targets,
            client=_versions(),
        )  # fmt: skip

        async def one(load: Load, what: str) -> Measurement:
            with _progress(settings, what) as tick:
                item = await measure(call, load, plan, tick=tick)
            found.append(item)
            return item

        if options["latency_limit"] is None:
            for number, load in enumerate(loads, 1):
                await one(load, f"{load.kind} {load} ({number} of {len(loads)})")
            return
        values = [load.value for load in loads]
        resolution = 1.0 if loads[0].kind == "concurrency" else max(values) * _RESOLUTION
        search = Bisection(min(values), max(values), resolution)
        while (value := search.next()) is not None:
            item = await one(LoadType(loads[0].kind, value), f"search: {loads[0].kind} {value:g}")
            search.tell(acceptable(item, limit=options["latency_limit"], share=options["percentile"] / 100))
        best.append(search.best)


async def _prepare(
    settings: Settings, options: dict[str, Any], client: AsyncClient, stack: contextlib.AsyncExitStack
) -> tuple[Call, int, int]:
    """A call that works: its inputs made or read, and tried once.

    Returns:
        The call, the rows that it has, and the version that answers.
    """
    from aioserving.cli.load import cycle

    model = client.model(
        settings.model,
        version=settings.version,
        version_label=settings.label,
        signature_name=settings.signature,
    )
    signature = (await model.get_model_metadata()).signature(settings.signature)
    batches = _batches(signature, options)
    result = await model.predict(batches[0])
    handle: Any = model
    if options["batched"]:
        size = max(options["max_batch_size"], options["batch_size"])
        # Nobody looks at the outputs: one that cannot be divided is no reason not to measure.
        handle = model.batched(max_batch_size=size, shared_outputs="broadcast")
        await stack.enter_async_context(handle)
    counted = [(batch, _rows(batch, signature)) for batch in batches]

    async def call(given: tuple[dict[str, Any], int]) -> int:
        await handle.predict(given[0])
        return given[1]

    return cycle(call, counted), counted[0][1], int(result.model_spec.version or 0)


def _rows(batch: dict[str, Any], signature: Signature) -> int:
    """Rows of a call: the size of the first axis, where the signature leaves it open; else 1."""
    for name, array in batch.items():
        shape = signature.inputs[name].shape
        if array.ndim and (shape is None or shape[:1] == (-1,)):
            return int(array.shape[0])
    return 1


def _batches(signature: Signature, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Inputs of calls: those that were given, cut into batches; or random ones."""
    from aioserving.cli import arrays

    size: int = options["batch_size"]
    shapes = arrays.parse_shapes(options["shapes"])
    given = arrays.read_inputs(options["inputs"], signature) if options["inputs"] else {}
    if not given:
        return [
            arrays.generate(signature, "random", batch=size, seed=options["seed"] + number, shapes=shapes)
            for number in range(_DISTINCT)
        ]
    missing = any(name not in given and spec.default is None for name, spec in signature.inputs.items())
    made = (
        arrays.generate(signature, "random", batch=size, seed=options["seed"], shapes=shapes)
        if missing
        else {}
    )
    prepared = signature.prepare({**{name: made[name] for name in made if name not in given}, **given})
    cut = {
        name: array
        for name, array in prepared.items()
        if name in given and array.ndim and (signature.inputs[name].shape or (-1,))[0] == -1
    }
    if not cut:
        return [prepared]
    lengths = {len(array) for array in cut.values()}
    if len(lengths) > 1:
        has = ", ".join(f"{name}: {len(array)}" for name, array in cut.items())
        raise CommandError(f"the inputs have different numbers of rows: {has}", ExitCode.INVALID)
    [length] = lengths
    if length < size:
        raise CommandError(f"the inputs have {length} rows, and --batch-size is {size}", ExitCode.INVALID)
    # What is left at the end is no whole batch, and would be a call of another kind.
    return [
        {**prepared, **{name: array[start : start + size] for name, array in cut.items()}}
        for start in range(0, length - size + 1, size)
    ]


def _versions() -> dict[str, str]:
    import platform

    from aioserving.cli.surroundings import PACKAGES, installed

    found = installed()
    return {
        "python": platform.python_version(),
        **{name: found[name] or "" for name in PACKAGES if found[name]},
    }


@contextlib.contextmanager
def _progress(settings: Settings, what: str) -> Iterator[Callable[[Measurement, float], None] | None]:
    """A live bar on a terminal; a line elsewhere."""
    output = settings.output
    if not output.progress_on_terminal:
        output.note(what)
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from aioserving.histogram import duration_text

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=output.console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=1.0, text="warming up")

        def tick(found: Measurement, share: float) -> None:
            text = "warming up"
            if found.latency:
                p50, p99 = found.latency.percentiles((0.5, 0.99))
                failed = sum(found.errors.values())
                times = f"p50 {duration_text(p50)}, p99 {duration_text(p99)}"
                text = f"{found.calls:,} calls, {times}, {failed:,} errors"
            bar.update(task, completed=share, text=text)

        yield tick
