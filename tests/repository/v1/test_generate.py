"""aioserving.repository.v1.generate: generated code is what the .proto file says, for every protobuf."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aioserving.repository.v1 import generate
from aioserving.repository.v1 import model_repository_pb2 as pb

ROOT = Path(__file__).parents[3]


def test_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    """Whoever changes the .proto file generates the module anew."""
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, which makes the module")
    [module, stubs] = generate.generate(tmp_path)
    pattern = r"AddSerializedFile\((b'.*')\)"
    made = re.search(pattern, module.read_text())
    assert made is not None
    assert eval(made[1]) == pb.DESCRIPTOR.serialized_pb
    here = Path(generate.__file__).with_name(stubs.name).read_text()
    fields = re.compile(r"^ *(?:class (\w+)|(\w+): )", re.MULTILINE)
    assert fields.findall(here) == fields.findall(stubs.read_text()), "the stubs, too"


def test_generated_for_the_oldest_protobuf() -> None:
    """Generated code runs with the protobuf it was made for and later ones; ours is the oldest supported."""
    [floor] = re.findall(r'^    "protobuf>=([\d.]+)",', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    source = Path(generate.__file__).with_name("model_repository_pb2.py").read_text()
    made = re.search(r"Protobuf Python Version: (\d+)\.(\d+)\.", source)
    assert made is not None
    assert (int(made[1]), int(made[2])) <= tuple(map(int, floor.split(".")))


def test_a_failed_generation_says_so(tmp_path: Path) -> None:
    """A module is not left as it was without a word."""
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, which makes the module")
    with pytest.raises(RuntimeError, match="code 1"):
        generate.generate(tmp_path / "missing")
