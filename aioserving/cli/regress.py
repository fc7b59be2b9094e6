"""`aioserving regress`: a number for each of some examples."""

from __future__ import annotations

from aioserving.cli.common import Settings, pass_settings
from aioserving.cli.rows import example_command, parse_kinds, read_context, read_rows

__all__ = ["command"]


@example_command(
    "regress",
    """
    aioserving regress -m prices size=54.0 rooms=2 -t 127.0.0.1:8500
    aioserving regress -m prices @flats.csv --as size=float -t 127.0.0.1:8500
    aioserving regress -m prices @flats.csv --column size --context '{"city": "Ghent"}' -t 127.0.0.1:8500
    cat flats.jsonl | aioserving regress -m prices - --json -t 127.0.0.1:8500
    """,
)
@pass_settings
def command(
    settings: Settings,
    examples: tuple[str, ...],
    kinds: tuple[str, ...],
    columns: tuple[str, ...],
    context: str | None,
    no_check: bool,
) -> None:
    """Find a number for each example.

    An EXAMPLE is JSON, @FILE.json, @FILE.jsonl or @FILE.csv, or - for standard input; NAME=VALUE arguments
    are the features of one. 1 is an int and 1.0 a float, and models insist on the one that they parse: --as
    makes a feature what it should be. An empty cell, or null, is a feature that the example does not have.
    """
    rows = read_rows(examples, parse_kinds(kinds), columns)
    shared = read_context(context)
    name = settings.model
    with settings.client() as client:
        model = client.model(
            name, version=settings.version, version_label=settings.label, signature_name=settings.signature
        )
        result = model.regress(rows, context=shared, validate=not no_check)
    spec = result.model_spec
    if settings.output.as_json:
        settings.output.json(
            {
                "model": spec.name,
                "version": spec.version,
                "signature": spec.signature_name,
                "results": result.values,
            }
        )
        return
    settings.output.table(
        ("row", "value"),
        [(number, f"{value:.7g}") for number, value in enumerate(result)],
        title=f"{spec.name} version {spec.version}, {spec.signature_name}",
        right=("row", "value"),
    )
