"""Generated modules are Python whatever the names are, as the formatter leaves them, and typed."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib.util
import inspect
import keyword
import subprocess
import sys
import types
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import AsyncClient, Client, InvalidInputError, ModelMetadata, Signature, TensorSpec
from aioserving.cli.stub_module import difference, generate, header_command
from aioserving.dtypes import TENSOR_TYPES, DataType
from aioserving.testing import CallableServable, ModelServer, ServerProcess
from aioserving.testing.servable import CLASSIFY, REGRESS, CallableSignature
from tests.models import graded, many_signatures

pytestmark = pytest.mark.anyio

FLOAT = DataType.DT_FLOAT

#: Names that tempt: keywords, builtins, what the module itself uses, what is no identifier, or none twice.
UGLY = [
    "input", "class", "class_", "self", "options", "timeout", "np", "npt", "Any", "aioserving", "_Inputs",
    "_inputs", "_response", "response", "field", "dict", "str", "int", "float", "None", "a-b", "a_b", "a b",
    "a.b:0", "0", "1st", "", "_", "__", "__init__", "é", "e\u0301", "ﬁ", "fi", "变量", "a\"b", "a'b", "a\\b",
    "a\nb", "\"'", "a\tb\x00", "\"\"\"", "\u202e", "Sequence", "Strings", "match", "count", "index",
    "metadata", "examples", "mro", "print",
]  # fmt: skip


def spec(
    name: str, data_type: DataType = FLOAT, shape: tuple[int, ...] | None = (-1,), **more: Any
) -> TensorSpec:
    return TensorSpec(name, data_type, shape, f"{name}:0", **more)


def signature(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], method_name: str = ""
) -> Signature:
    return Signature(
        name, {item.name: item for item in inputs}, {item.name: item for item in outputs}, method_name, "m"
    )


def metadata(name: str, *signatures: Signature, version: int = 1) -> ModelMetadata:
    return ModelMetadata(name, version, {item.name: item for item in signatures})


def plain(names: Sequence[str], model: str = "m") -> ModelMetadata:
    """A model whose signatures, inputs and outputs all have these names."""
    specs = [spec(name) for name in names]
    return metadata(model, *(signature(name, specs, specs) for name in names or ["serving_default"]))


def made(*models: ModelMetadata, blocking: bool = True) -> str:
    return generate(models, command="aioserving stubs ...", blocking=blocking)


def loaded(source: str, name: str = "generated_for_test") -> types.ModuleType:
    """The module that `source` is."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module


def every_type() -> ModelMetadata:
    """A model with an input and an output of every dtype, and all that no call can carry."""
    inputs = [spec(item.name.lower(), item, (-1, 2)) for item in TENSOR_TYPES]
    return metadata(
        "every_type",
        signature("all", inputs, inputs),
        signature(
            "with_defaults",
            [
                spec("needed"),
                spec("more", shape=None, default=np.zeros(1)),
                spec("s", kind="sparse", default=np.zeros(1)),
            ],
            [spec("y"), spec("sparse", kind="sparse"), spec("handle", DataType.DT_INVALID)],
        ),
        signature("sparse", [spec("x", kind="sparse")], [spec("y")]),
        signature("resource", [spec("x", DataType.DT_INVALID)], [spec("y")]),
        signature("nothing", [], []),
        signature("tf1", [spec("inputs", DataType.DT_STRING)], [spec("outputs")], REGRESS),
        signature("tf1_classify", [spec("inputs", FLOAT)], [spec("scores")], CLASSIFY),
        signature("tf1_lies", [spec("x")], [spec("y")], REGRESS),
        signature("tf2", [spec("inputs", DataType.DT_STRING)], [spec("scores")]),
        signature("tf2_examples", [], [spec("y")]),
        signature("texts", [spec("inputs", DataType.DT_STRING)], [spec("scores"), spec("more")]),
    )


def functions(module: types.ModuleType, name: str) -> Mapping[str, Any]:
    return {
        key: value for key, value in vars(getattr(module, name)).items()
        if inspect.isfunction(value) and not key.startswith("_")
    }  # fmt: skip


# -- names --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12) | st.sampled_from(UGLY), max_size=5, unique=True), st.text(max_size=8))
def test_any_names(names: list[str], model: str) -> None:
    """Whatever things are called, the module runs and has a different name for each, in Python's own form."""
    text = made(plain(names, model))
    module = loaded(text)
    [(_, blocking)] = [item for item in vars(module).items() if item[0].startswith("Blocking")]
    methods = functions(module, blocking.__name__)
    assert len(methods) == max(len(names), 1)
    for method in methods.values():
        parameters = [
            name for name, item in inspect.signature(method).parameters.items()
            if item.kind == item.KEYWORD_ONLY
        ]  # fmt: skip
        assert len(set(parameters)) == len(names)
        for name in (*parameters, *methods):
            assert name.isidentifier()
            assert not keyword.iskeyword(name)
            assert not name.startswith("_")
            assert unicodedata.normalize("NFKC", name) == name


def test_names_that_can_stay_do() -> None:
    """A name that is fine is kept, though an ugly one before it would become the same."""
    module = loaded(made(plain(["a b", "a_b", "class_", "class", "input"])))
    parameters = list(inspect.signature(module.M.a_b).parameters)
    assert parameters == ["self", "a_b_", "a_b", "class_", "class_2", "input", "options"]


def test_real_names_are_sent() -> None:
    """What a call carries are the names of the signature, not those that Python allows."""
    source = made(plain(UGLY), blocking=False)
    sent: list[tuple[str, dict[str, Any]]] = []

    class Handle:
        def __init__(self, name: str) -> None:
            self.name = name

        async def predict(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
            sent.append((self.name, inputs))
            return {name: f"answer {name}" for name in UGLY}

    class Recorder:
        def model(self, name: str, *, version: Any, version_label: Any, signature_name: str) -> Handle:
            return Handle(signature_name)

    module = loaded(source)
    stub = module.M(Recorder())
    results = []
    for name in functions(module, "M"):
        method = getattr(stub, name)
        parameters = [key for key in inspect.signature(method).parameters if key != "options"]
        call = method(**{key: index for index, key in enumerate(parameters)})
        results.append(asyncio.run(call))
    assert [name for name, _ in sent] == UGLY
    assert all(inputs == {name: index for index, name in enumerate(UGLY)} for _, inputs in sent)
    for result in results:
        values = [getattr(result, item.name) for item in dataclasses.fields(result)][:-1]
        assert values == [f"answer {name}" for name in UGLY]


def test_models_of_one_class_name() -> None:
    """Two models whose names become the same class name get two classes; so do names of other classes."""
    module = loaded(
        made(*(plain(["x"], name) for name in ("a b", "a_b", "Any", "blocking_a_b", "none", "1")))
    )
    classes = [name for name, item in vars(module).items() if isinstance(item, type) and hasattr(item, "x")]
    own = [name for name in classes if "Result" not in name]
    assert own == [
        "AB", "BlockingAB", "AB2", "BlockingAB2", "Any2", "BlockingAny2",
        "BlockingAB3", "BlockingBlockingAB3", "None2", "BlockingNone2", "Model1", "BlockingModel1",
    ]  # fmt: skip


# -- text ---------------------------------------------------------------------------------------------------


def test_same_signatures_same_text() -> None:
    """Neither the version nor the order in which a server lists things changes a byte."""
    first = made(metadata("m", signature("s", [spec("a")], [spec("b")]), version=1))
    assert made(metadata("m", signature("s", [spec("a")], [spec("b")]), version=2)) == first
    assert made(metadata("m", signature("s", [spec("a")], [spec("c")]))) != first


def test_nothing_to_make() -> None:
    """No model, or one named twice, is the caller's mistake; a model without signatures is none."""
    with pytest.raises(ValueError, match="no model"):
        made()
    with pytest.raises(ValueError, match="twice"):
        made(plain(["x"]), plain(["x"]))
    module = loaded(made(metadata("empty")))
    assert inspect.signature(module.Empty).parameters.keys() == {"client", "version", "version_label"}


def test_header_command() -> None:
    """The header's command line can be typed as it stands, and knows no server."""
    assert header_command(["a b", "c"], blocking=True, version=3) == (
        "aioserving stubs 'a b' c --version 3 --blocking"
    )
    assert header_command(["a"], blocking=False, label="x") == "aioserving stubs a --label x"
    source = generate([plain(["x"])], command='aioserving stubs \'a"""b\\\'\n')
    assert 'aioserving stubs \'a"""b\\\'\\n' in (ast.get_docstring(ast.parse(source)) or "")


@pytest.mark.parametrize("line_length", [79, 88, 110, 120])
def test_formatted(tmp_path: Path, line_length: int) -> None:
    """The formatter finds nothing to do, whatever the length of lines and however ugly the names."""
    pytest.importorskip("ruff", reason="needs ruff, the formatter that generated code is held to")
    short = [name for name in UGLY if len(name) < 30]
    path = tmp_path / "made.py"
    path.write_text(made(every_type(), plain(short), plain(["x"], "a\"'\\\nb"), metadata("empty")))
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", f"--line-length={line_length}"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


USER = """
import numpy as np
import numpy.typing as npt
from made import BlockingEveryType, EveryType, M

from aioserving import AsyncClient, Client, RegressResult


async def good(client: AsyncClient, blocking: Client) -> npt.NDArray[np.float32]:
    model = EveryType(client, version=3)
    answer = await model.with_defaults(needed=[[1.0, 2.0], [3.0]], timeout=1.0)
    regressed: RegressResult = await model.tf1([{"x": 1.0}], context={"y": b"z"}, timeout=None)
    version: int | None = answer.response.model_spec.version
    texts = BlockingEveryType(blocking).texts(inputs=[b"a", "b"], metadata=[("a", "b")])
    more = BlockingEveryType(blocking).texts(inputs=np.array([b"a"]))
    await model.tf2(inputs=np.array([b"a"], object))
    return answer.y if regressed and version else texts.more + more.more


async def bad(client: AsyncClient) -> None:
    model = EveryType(client)
    await model.with_defaults()  # 1: an input is missing
    await model.with_defaults(needed=np.zeros(3))  # 2: float64
    await model.with_defaults(needed=1, wrong=2)  # 3: no such input
    await model.with_defaults(needed=1, timeout="1")  # 4: no number
    (await model.nothing()).y  # 5: no such output
    answer: npt.NDArray[np.int64] = (await model.with_defaults(needed=1)).y  # 6: another dtype
    await model.sparse(x=1)  # 7: left out
"""


def test_typed(tmp_path: Path) -> None:
    """mypy --strict finds nothing in generated code, and in code that uses it finds what is wrong."""
    pytest.importorskip("mypy", reason="needs mypy, the checker that generated code is held to")
    (tmp_path / "made.py").write_text(made(every_type(), plain(UGLY)))
    user = tmp_path / "user.py"
    user.write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--python-version=3.10"]
    # A cache beside that of the repository's own runs, which other settings would clear.
    command += ["--config-file=", f"--cache-dir={Path(__file__).parents[2] / '.mypy_cache' / 'stubs'}"]
    done = subprocess.run(
        [*command, "made.py", "user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    wanted = {number for number, line in enumerate(USER.splitlines(), 1) if "  # " in line}
    assert "made.py" not in done.stdout, done.stdout
    assert found == wanted, done.stdout + done.stderr


# -- what signatures become ---------------------------------------------------------------------------------


def test_kinds_of_signatures() -> None:
    """Declared Classify and Regress take examples; TensorFlow 2's undeclared ones both; lies take tensors."""
    source = made(every_type(), blocking=False)
    module = loaded(source)
    methods = {name: inspect.signature(item) for name, item in functions(module, "EveryType").items()}
    result = {name: item.return_annotation for name, item in methods.items()}
    assert result["tf1"] == "aioserving.RegressResult"
    assert result["tf1_classify"] == "aioserving.ClassifyResult"
    assert result["tf1_lies"] == "EveryTypeTf1LiesResult"
    assert result["tf2"] == "EveryTypeTf2Result"
    # The signature that is called so keeps its name.
    assert list(methods["tf2_examples"].parameters) == ["self", "options"]
    assert result["tf2_examples_"] == "aioserving.ClassifyResult"
    assert {"sparse", "resource", "texts_examples"}.isdisjoint(methods)
    assert "'sparse': input 'x' is a sparse tensor, which no call can carry." in module.EveryType.__doc__
    assert list(methods["with_defaults"].parameters) == ["self", "needed", "more", "options"]
    assert methods["with_defaults"].parameters["more"].default is None
    assert [item.name for item in dataclasses.fields(module.EveryTypeWithDefaultsResult)] == ["y", "response"]


def test_docstrings_tell_dtypes_and_shapes() -> None:
    """What a method takes and gives is in its docstring, with the real name where it had to change."""
    inputs = [spec("a-b", FLOAT, (-1, 3)), spec("t", DataType.DT_STRING, None)]
    module = loaded(made(metadata("m", signature("s", inputs, [spec("y", DataType.DT_INT64, ())]))))
    text = inspect.getdoc(module.M.s)
    assert text is not None
    assert "a_b: float32 (-1, 3), 'a-b' in the signature." in text
    assert "t: bytes (object) of any shape." in text
    assert "y: int64 ()." in text


# -- against servers ----------------------------------------------------------------------------------------


def served() -> CallableServable:
    """A model with awkward names, in a process of its own."""
    return CallableServable(
        {
            "serving default": CallableSignature(
                function=lambda **inputs: {"class": inputs["a-b"] * 2, "texts": inputs["class"]},
                inputs={"a-b": ("float32", (None, 2)), "class": ("string", (None,))},
                outputs={"class": ("float32", (None, 2)), "texts": ("string", (None,))},
            )
        },
        inline=True,
    )


def test_against_a_process(tmp_path: Path) -> None:
    """A module made from a server's answer calls that server, with checks and typed results."""
    with (
        ServerProcess(callables={"odd": "tests.cli.test_stub_module:served"}) as process,
        Client(process.target) as client,
    ):
        path = tmp_path / "odd_model.py"
        path.write_text(made(client.get_model_metadata("odd")))
        found = importlib.util.spec_from_file_location("odd_model", path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules["odd_model"] = module
        try:
            found.loader.exec_module(module)
            model = module.BlockingOdd(client)
            result = model.serving_default(a_b=[[1.0, 2.0]], class_=["x", b"y"], timeout=10.0)
            assert repr(model) == f"<BlockingOdd of {client!r}>"
            with pytest.raises(InvalidInputError, match="expects float32"):
                model.serving_default(a_b=[1.0], class_=["x"])
        finally:
            del sys.modules["odd_model"]
    assert type(result).__name__ == "OddServingDefaultResult"
    assert result.class_.tolist() == [[2.0, 4.0]]
    assert result.texts.tolist() == [b"x", b"y"]
    assert result.response.model_spec.version == 1


async def test_async_against_a_server() -> None:
    """The asyncio form predicts, classifies and regresses, and asks for the version it was made for."""
    async with (
        ModelServer({"many": {1: many_signatures(), 2: many_signatures()}, "graded": graded()}) as server,
        AsyncClient(server.target) as client,
    ):
        found = [await client.get_model_metadata(name) for name in ("many", "graded")]
        module = loaded(made(*found))
        many = module.Many(client, version=1)
        added = await many.serving_default(a=np.ones(2, np.float32), b=[1, 2])
        ticks = await many.ticks()
        graded_ = module.Graded(client)
        classes = await graded_.classify_examples([{"x": 0.25}])
        numbers = await graded_.regress_examples({"x": [4.0, 2.0]})
    assert (added.sum.tolist(), added.difference.tolist()) == ([2.0, 3.0], [0.0, -1.0])
    assert added.response.model_spec.version == 1
    assert int(ticks.tick) == 1
    assert classes[0].label == "low"
    assert list(numbers) == [4.0, 3.0]


def test_difference() -> None:
    """A diff shows what changed and little around it, and no more than the limit."""
    old, new = (made(metadata("m", signature("s", [spec(name)], [spec("y")]))) for name in ("a", "b"))
    lines = difference(old, new, "f.py")
    assert lines[:2] == ["--- f.py", "+++ f.py (from the server)"]
    assert [line for line in lines if line.startswith(("-  ", "+  "))][:2] == [
        "-        a: npt.NDArray[np.float32] | Floats,", "+        b: npt.NDArray[np.float32] | Floats,"
    ]  # fmt: skip
    assert difference(old, old, "f.py") == []
    assert len(difference("", new, "f.py", limit=5)) == 6
    assert "lines more" in difference("", new, "f.py", limit=5)[-1]
