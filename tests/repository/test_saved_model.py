"""Whether a folder holds a SavedModel: what is missing or broken is found, in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aioserving._proto import message_class
from aioserving.repository import saved_model as module
from aioserving.repository.saved_model import InvalidModelError, MissingFileError, check
from tests.repository.stores import DATA, INDEX, saved_model

WHOLE = (*("saved_model.pb", INDEX, DATA), "assets/words")


def write(folder: Path, data: bytes, name: str = "saved_model.pb") -> Path:
    (folder / name).write_bytes(data)
    return folder


@pytest.fixture(params=["at once", "walked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small messages are parsed at once; with the threshold set low the same ones are walked."""
    if request.param == "walked":
        monkeypatch.setattr(module, "_WHOLE", 60)
    return str(request.param)


def test_a_whole_model_is_fine(tmp_path: Path, way: str) -> None:
    """With its variables and assets there is nothing to say."""
    check(write(tmp_path, saved_model(assets=("words",))), WHOLE)
    check(write(tmp_path, saved_model(variables=False)), ("saved_model.pb",))


def test_what_the_model_needs_has_to_be_there(tmp_path: Path, way: str) -> None:
    """Missing variables, shards and assets are named."""
    write(tmp_path, saved_model(assets=("words",)))
    for gone in (*WHOLE[1:], "saved_model.pb"):
        with pytest.raises(MissingFileError, match=gone):
            check(tmp_path, [path for path in WHOLE if path != gone])


def test_truncated_models_are_none(tmp_path: Path, way: str) -> None:
    """Wherever a SavedModel is cut, it is refused or lacks its meta graph."""
    data = saved_model(assets=("words",))
    for cut in range(len(data)):
        with pytest.raises(InvalidModelError):
            check(write(tmp_path, data[:cut]), WHOLE)


@pytest.mark.parametrize(
    "data", [b"<html>not found</html>", b"\0" * 100, b"\x12\xff\xff\xff\xff\xff\xff\xff", b"\x0b"]
)
def test_other_files_are_none(tmp_path: Path, way: str, data: bytes) -> None:
    """A page, zeros and broken framing are told from a model."""
    with pytest.raises(InvalidModelError):
        check(write(tmp_path, data * 10), WHOLE)


def test_text_models_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``saved_model.pbtxt`` is as good, within bounds."""
    from google.protobuf import text_format

    made: Any = message_class("tensorflow.SavedModel").FromString(saved_model(assets=("words",)))
    paths = ("saved_model.pbtxt", *WHOLE[1:])
    text = text_format.MessageToString(made).encode()
    check(write(tmp_path, text, "saved_model.pbtxt"), paths)
    with pytest.raises(MissingFileError, match="assets/words"):
        check(tmp_path, paths[:-1])
    with pytest.raises(InvalidModelError):
        check(write(tmp_path, text[:-5], "saved_model.pbtxt"), paths)
    monkeypatch.setattr(module, "_WHOLE", 10)
    with pytest.raises(InvalidModelError, match="binary"):
        check(write(tmp_path, text, "saved_model.pbtxt"), paths)


def test_large_constants_are_not_read_into_memory(tmp_path: Path) -> None:
    """Nodes beyond the threshold are walked: variables behind them, and in functions, are found still."""
    import tracemalloc

    made: Any = message_class("tensorflow.SavedModel")()
    graph = made.meta_graphs.add().graph_def
    made.meta_graphs[0].saver_def.restore_op_name = "restore"
    graph.node.add(name="c", op="Const").attr["value"].tensor.tensor_content = bytes(40 << 20)
    graph.library.function.add().node_def.add(name="v", op="VarHandleOp")
    write(tmp_path, made.SerializeToString())
    del made, graph
    tracemalloc.start()
    try:
        with pytest.raises(MissingFileError, match=INDEX):
            check(tmp_path, ("saved_model.pb",))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
