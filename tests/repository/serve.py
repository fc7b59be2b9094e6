"""The testing server as a process whose models need no TensorFlow: `python -m tests.repository.serve`.

A version folder is any that the repository takes for a SavedModel. Its number is what it answers, as
``version`` beside the row sums; a file in its assets changes that: ``fails`` makes loading it fail, ``wrong``
lets it answer -1, and ``slow`` takes a second to load.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from aioserving.testing import ServerProcess, StatusCode, StatusError, server
from aioserving.testing import __main__ as serving

from ..models import digits

ROOT = Path(__file__).parents[2]


class LightServer(ServerProcess):
    """A `ServerProcess` of this module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            config="", env={"PYTHONPATH": str(ROOT)}, file_system_poll_wait_seconds=0.2, **options
        )

    @property
    def arguments(self) -> list[str]:
        executable, dash_m, _, *flags = super().arguments
        return [executable, dash_m, "tests.repository.serve", *flags]


def load(path: str, options: object) -> Any:
    folder = Path(path)
    if not (folder / "saved_model.pb").is_file():
        raise StatusError(StatusCode.NOT_FOUND, f"Could not find SavedModel .pb or .pbtxt at {path}")
    if (folder / "assets" / "slow").exists():
        time.sleep(1.0)
    if (folder / "assets" / "fails").exists():
        raise StatusError(StatusCode.DATA_LOSS, f"the graph in {path} is damaged")
    wrong = (folder / "assets" / "wrong").exists()
    return digits(-1 if wrong else int(folder.name), width=4)


if __name__ == "__main__":
    server._load = load
    code = serving.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
