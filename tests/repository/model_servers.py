"""Testing servers in processes of their own that load SavedModels without TensorFlow.

`aioserving.testing` as it is, but for what loads a version: a version multiplies by the number that stands in
its ``saved_model.pb`` (see `stores.saved_model`'s note), and one whose note is ``bad`` fails to load.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from aioserving.testing import CallableServable, ServerProcess, StatusCode, StatusError

__all__ = ["LightServer"]

ROOT = Path(__file__).parents[2]


class LightServer(ServerProcess):
    """A server process that starts within a second, with nothing to serve; reloads tell it what."""

    def __init__(self, **flags: Any) -> None:
        super().__init__(
            config="",
            env={"PYTHONPATH": str(ROOT)},
            max_num_load_retries=0,
            testing_host="127.0.0.1",
            file_system_poll_wait_seconds=1,
            **flags,
        )

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        found = super().arguments
        return [found[0], "-m", "tests.repository.model_servers", *found[3:]]


def _load(path: str, options: object) -> Any:
    from aioserving._proto import message_class

    model: Any = message_class("tensorflow.SavedModel").FromString(Path(path, "saved_model.pb").read_bytes())
    note = re.sub(r"^2\.21 ?", "", model.meta_graphs[0].meta_info_def.tensorflow_version)
    if note == "bad":
        raise StatusError(StatusCode.INVALID_ARGUMENT, f"{path} is bad, as the test wants it")

    def run(x: Any) -> dict[str, Any]:
        return {"y": x * np.float32(note), "version": np.array(int(Path(path).name), np.int64)}

    return CallableServable(
        run,
        inputs={"x": ("float32", (None,))},
        outputs={"y": ("float32", (None,)), "version": ("int64", ())},
        inline=True,
    )


if __name__ == "__main__":
    from aioserving.testing import __main__ as program
    from aioserving.testing import server

    server._load = _load
    sys.exit(program.main())
