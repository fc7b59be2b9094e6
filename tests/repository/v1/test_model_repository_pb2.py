"""aioserving.repository.v1.model_repository_pb2: the service as its .proto file tells it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from aioserving.repository.service import READ_METHODS, SERVICE
from aioserving.repository.v1 import generate
from aioserving.repository.v1 import model_repository_pb2 as pb


def test_every_method_and_field_is_documented() -> None:
    """The .proto file is the documentation of the service: it tells of each method."""
    text = (Path(generate.__file__).with_name("model_repository.proto")).read_text()
    [service] = re.findall(r"service ModelRepository \{(.*?)\n\}", text, re.DOTALL)
    for block in service.strip().split("\n\n"):
        assert block.strip().startswith("//"), block
    assert len(re.findall(r"^  rpc ", service, re.MULTILINE)) == len(
        pb.DESCRIPTOR.services_by_name["ModelRepository"].methods
    )


def test_read_methods_exist() -> None:
    """The role `read` names methods of the service, none of which changes anything."""
    service = pb.DESCRIPTOR.services_by_name["ModelRepository"]
    assert service.full_name == SERVICE
    names = {method.name for method in service.methods}
    assert names >= READ_METHODS
    changing = {"SetPolicy", "Rollout", "Rollback", "ReleaseVersion", "DeleteVersion"}
    assert names - READ_METHODS == {"FetchVersion", *changing}


def test_messages_need_no_tensorflow() -> None:
    """Importing the client of a repository service pulls in no TensorFlow, no fsspec and no YAML."""
    code = (
        "import sys, aioserving.repository.client\n"
        "print([name for name in ('tensorflow', 'fsspec', 'yaml', 'click') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
