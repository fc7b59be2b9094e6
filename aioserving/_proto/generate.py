"""Write `tensorflow_core.binpb`, the descriptors for slim installs, from an installed TensorFlow.

    python -m aioserving._proto.generate

Run it with the newest TensorFlow that the package supports. The set holds the files of `tensorflow`
that the modules in `MODULES` need, with everything these import in turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aioserving._proto import DESCRIPTOR_SET, MODULES, load_module

__all__ = ["descriptor_set"]


def descriptor_set() -> bytes:
    """A serialized FileDescriptorSet, each file after those it imports."""
    from google.protobuf import descriptor_pb2

    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        for dependency in file.dependencies:
            add(dependency)
        if file.name.startswith(("tensorflow/", "xla/")):
            files.setdefault(file.name, file)

    for module in dict.fromkeys(MODULES.values()):
        add(load_module(module).DESCRIPTOR)
    result = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(result.file.add())
    return result.SerializeToString(deterministic=True)


if __name__ == "__main__":
    path = Path(__file__).with_name(DESCRIPTOR_SET)
    path.write_bytes(descriptor_set())
    print(f"{path.name}: {path.stat().st_size} bytes")  # noqa: T201
