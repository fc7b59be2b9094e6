"""Write `model_repository_pb2.py` and its stubs from `model_repository.proto`.

    pip install "grpcio-tools==1.71.*" && python -m aioserving.repository.v1.generate

A newer grpcio-tools is refused: its code would not run with the oldest protobuf that aioserving supports.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

__all__ = ["PROTO", "TOOLS", "generate"]

#: Where the .proto file is, from the folder that holds the package `aioserving`.
PROTO = "aioserving/repository/v1/model_repository.proto"

#: The grpcio-tools whose code runs with protobuf 5.29 and later.
TOOLS = "1.71"


def generate(destination: Path) -> list[Path]:
    """Generate the module and its stubs below `destination`; whatever grpcio-tools is installed does it.

    Returns:
        The files written.

    Raises:
        ImportError: grpcio-tools is not installed.
        RuntimeError: the .proto file has errors; they are on standard error.
    """
    import grpc_tools
    from grpc_tools import protoc

    root = Path(__file__).parents[3]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{root}",
            f"-I{well_known}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            PROTO,
        ]
    )
    if code:
        raise RuntimeError(f"protoc ended with code {code}")
    module = destination / PROTO.replace(".proto", "_pb2.py")
    return [module, module.with_suffix(".pyi")]


if __name__ == "__main__":
    found = importlib.metadata.version("grpcio-tools")
    if not found.startswith(f"{TOOLS}."):
        sys.exit(f"grpcio-tools {found} is installed; this takes {TOOLS}.*, see the module's docstring")
    for path in generate(Path(__file__).parents[3]):
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")
