"""docs/command-line-tools.md is true: what it types is taken, and what it says is found in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

from .test_group import command_lines, parse

TEXT = (Path(__file__).parents[2] / "docs" / "command-line-tools.md").read_text(encoding="utf-8")


def test_command_lines_parse() -> None:
    """Every command line in the document is one that the command takes."""
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in command_lines(block)
    ]
    assert {line[1] for line in lines} == {"bench", "doctor", "stubs"}
    for line in lines:
        parse(line)


def test_every_check_is_documented() -> None:
    """The table of checks has those of doctor, in their order."""
    from aioserving.cli import diagnosis

    names = re.findall(
        r"^\| ([a-z ]+?) \|", TEXT.partition("## doctor")[2].partition("## stubs")[0], re.MULTILINE
    )
    wanted = ["proxy", *diagnosis._WAY, "health", *diagnosis._MODEL, "round trip"]
    assert names == ["check", "versions", "import", "variables", "clock", *wanted]


def test_the_generated_sample_is_generated() -> None:
    """The class that is shown is what the command writes for the model that is shown."""
    from aioserving import ModelMetadata, Signature, TensorSpec
    from aioserving.cli.stub_module import generate
    from aioserving.dtypes import DataType

    inputs = {"images": TensorSpec("images", DataType.DT_FLOAT, (-1, 784))}
    outputs = {
        "scores": TensorSpec("scores", DataType.DT_FLOAT, (-1,)),
        "version": TensorSpec("version", DataType.DT_INT64, ()),
    }
    signature = Signature("serving_default", inputs, outputs)
    made = generate([ModelMetadata("digits", 1, {"serving_default": signature})], command="x")
    shown = TEXT.partition("```\nclass Digits:")[2].partition("```")[0]
    method = shown[shown.index("    async def") :]
    assert method in made
