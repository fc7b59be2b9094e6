"""What crosses to an engine's workers, and what they do with it, without an engine."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extras of the engines")

import numpy as np
import pyarrow as pa

from aioserving.engines.model import close_clients, pin
from aioserving.errors import InvalidArgumentError, InvalidInputError, ModelNotFoundError, UnavailableError
from aioserving.jobs.errors import BadRows, ColumnError
from aioserving.security import StaticToken
from aioserving.testing import ServerProcess
from aioserving.tf_examples import serialize_examples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_clients()


def table(values: Any) -> pa.Table:
    column = pa.array(values, pa.list_(pa.float64()))
    return pa.table({"id": np.arange(len(values)), "x": column})


def test_rows_keep_their_columns_and_order(fleet: Any) -> None:
    """Scored rows are the rows given, in their order, with a column for each output, of its type."""
    model = pin(fleet.targets, "rows", batch_size=7)
    values = np.random.default_rng(1).random((100, 2)).round(3)
    rows = table(values.tolist())
    found = model.score(rows)
    assert found.schema == model.output_schema(rows.schema)
    assert found.select(["id", "x"]).equals(rows)
    expected = values.astype(np.float32)
    np.testing.assert_allclose(found.column("sum").to_numpy(), expected.sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(np.array(found.column("double").to_pylist(), np.float32), expected * 2)
    assert found.column("text").to_pylist() == [b"0"] * 100 or set(found.column("text").to_pylist()) == {
        b"0",
        b"1",
    }
    assert found.column("version").to_pylist() == [1] * 100
    assert model.score(rows.slice(0, 0)).schema == found.schema
    assert repr(model) == "<PinnedModel rows version 1, serving_default: double, sum, text, version>"


def test_outputs_are_chosen_and_named(fleet: Any) -> None:
    """Only the outputs asked for are sent and become columns, under the names given; text if that is said."""
    model = pin(fleet.targets, "rows", outputs={"text": "label"}, strings="utf8")
    found = model.score(table([[1, 2], [3, 4]]))
    assert found.column_names == ["id", "x", "label"]
    assert found.column("label").to_pylist() == ["3", "7"]
    with pytest.raises(ColumnError, match="there is a column 'id' already"):
        pin(fleet.targets, "rows", outputs={"text": "id"}).output_schema(table([]).schema)
    with pytest.raises(ColumnError, match="two outputs would be one column"):
        pin(fleet.targets, "rows", outputs={"text": "a", "sum": "a"})
    with pytest.raises(InvalidInputError, match="'nope', which is no output"):
        pin(fleet.targets, "rows", outputs=["nope"])


def test_the_version_is_that_of_the_driver(fleet: Any) -> None:
    """A version that is rolled out after `pin` answers no row."""
    model = pin(fleet.targets, "rows", outputs=["version"])
    fleet.serve(1, 2)
    try:
        assert model.version == 1
        assert pin(fleet.targets, "rows").version == 2
        again = pickle.loads(pickle.dumps(model))
        assert again.score(table([[1, 2]] * 3)).column("version").to_pylist() == [1, 1, 1]
    finally:
        fleet.serve(1)


def test_rows_that_cannot_be_scored(fleet: Any) -> None:
    """A bad row ends the task; or has nulls and what is wrong, if there is a column for that."""
    rows = table([[1, 2], None, [-1, 0], [3, 4], [5]])
    with pytest.raises(BadRows, match="2 of 5 rows cannot be sent: row 1"):
        pin(fleet.targets, "rows").score(rows)
    with pytest.raises(InvalidArgumentError, match="row 1: a number is below 0"):
        pin(fleet.targets, "rows").score(table([[1, 2], [-1, 0]]))
    found = pin(fleet.targets, "rows", error_column="why", batch_size=2).score(rows)
    assert found.column("sum").to_pylist() == [3.0, None, None, 7.0, None]
    assert found.column("double").to_pylist() == [[2, 4], None, None, [6, 8], None]
    why = found.column("why").to_pylist()
    assert [bool(told) for told in why] == [False, True, True, False, True]
    assert "a number is below 0" in why[2]
    assert "has 1 values, 2 are expected" in why[4]
    nothing = pin(fleet.targets, "rows", error_column="why").score(table([None, None]))
    assert nothing.column("sum").to_pylist() == [None, None]


def test_each_process_has_one_client(fleet: Any) -> None:
    """A process opens one client for a model, however often that arrives; another opens its own."""
    model = pin(fleet.targets, "rows", outputs=["sum"])
    one, other = pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(model))
    assert one.client() is other.client() is model.client()
    script = (
        "import pickle, sys, pyarrow as pa\n"
        "model = pickle.load(sys.stdin.buffer)\n"
        "rows = pa.table({'x': pa.array([[1, 2]], pa.list_(pa.float32()))})\n"
        "print(model.score(rows).column('sum').to_pylist())\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=pickle.dumps(model),
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert (found.stdout.decode().strip(), found.stderr.decode()) == ("[3.0]", "")
    client = model.client()
    close_clients()
    assert model.client() is not client


def test_secrets_stay_where_they_are(fleet: Any) -> None:
    """Credentials come from a function that workers run; given as they are, they are refused."""
    with pytest.raises(ValueError, match="options has 'credentials', which would travel with every task"):
        pin(fleet.targets, "rows", options={"credentials": StaticToken("s3cret")})
    os.environ["AIOSERVING_TEST_TOKEN"] = "s3cret"
    try:
        model = pin(fleet.targets, "rows", options=_options)
        assert b"s3cret" not in pickle.dumps(model)
        assert pickle.loads(pickle.dumps(model)).score(table([[1, 2]])).column("sum").to_pylist() == [3.0]
    finally:
        del os.environ["AIOSERVING_TEST_TOKEN"]


def _options() -> dict[str, Any]:
    return {"metadata": [("authorization", f"Bearer {os.environ['AIOSERVING_TEST_TOKEN']}")]}


def test_the_driver_finds_what_is_wrong(fleet: Any) -> None:
    """Unknown models and servers, wrong settings and wrong columns are found before anything is sent out."""
    with pytest.raises(ModelNotFoundError):
        pin(fleet.targets, "nope")
    with pytest.raises(UnavailableError):
        pin("127.0.0.1:1", "rows", options={"timeout": 0.3, "retry": None})
    with pytest.raises(ValueError, match="version or version_label, not both"):
        pin(fleet.targets, "rows", version=1, version_label="stable")
    with pytest.raises(ValueError, match="batch_size=0"):
        pin(fleet.targets, "rows", batch_size=0)
    with pytest.raises(ColumnError, match=r"there is no column for input 'x' of rows/serving_default"):
        pin(fleet.targets, "rows").output_schema(pa.schema([("a", pa.int64()), ("b", pa.int64())]))


# -- Classify and Regress -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded() -> Iterator[ServerProcess]:
    """A server of `tests.models.graded`, which classifies and regresses Examples with a float ``x``."""
    with ServerProcess(callables={"graded": "tests.models:graded"}, env={"PYTHONPATH": str(ROOT)}) as process:
        yield process


def test_examples_are_classified_and_regressed(graded: ServerProcess) -> None:
    """Serialized Examples in a column, or their features, go to the method; its answers become columns."""
    values = [number / 64 for number in range(50)]
    rows = pa.table({"id": range(50), "e": pa.array(serialize_examples({"x": values}), pa.binary())})
    settings: dict[str, Any] = {"batch_size": 8, "strings": "utf8"}
    classify = pin(graded.target, "graded", signature_name="classify", method="classify", **settings)
    found = pickle.loads(pickle.dumps(classify)).score(rows)
    assert found.schema == classify.output_schema(rows.schema)
    assert found.column_names == ["id", "e", "classes", "scores"]
    assert found.column("classes").to_pylist() == [["low", "high"]] * 50
    assert found.column("scores").to_pylist() == [[1 - value, value] for value in values]
    assert classify.score(rows.slice(0, 0)).schema == found.schema
    regress = pin(
        graded.target,
        "graded",
        signature_name="regress",
        method="regress",
        inputs={"inputs": ["x"]},
        outputs={"value": "price"},
    )
    features = pa.table({"x": pa.array(values, pa.float32())})
    assert regress.score(features).column("price").to_pylist() == [value / 2 + 2 for value in values]


def test_examples_that_cannot_be_classified(graded: ServerProcess) -> None:
    """A null, and an Example that the server refuses, have nulls and what is wrong, and no other row does."""
    examples: list[bytes | None] = list(serialize_examples({"x": [0.0, 0.25, 0.5, 0.75, 1.0]}))
    examples[1], examples[3] = None, serialize_examples([{"other": [1.0]}])[0]
    rows = pa.table({"e": pa.array(examples, pa.binary())})
    model = pin(
        graded.target, "graded", signature_name="regress", method="regress", error_column="why", batch_size=4
    )
    found = model.score(rows)
    assert found.column("value").to_pylist() == [2.0, None, 2.25, None, 2.5]
    assert [told is not None for told in found.column("why").to_pylist()] == [False, True, False, True, False]
    assert "'e' is null" in found.column("why")[1].as_py()


def test_the_driver_knows_what_a_method_needs(graded: ServerProcess) -> None:
    """A signature that is not for the method, an output it has not, and a method there is not are refused."""
    with pytest.raises(InvalidInputError, match="'regress' cannot be used to classify"):
        pin(graded.target, "graded", signature_name="regress", method="classify")
    with pytest.raises(InvalidInputError, match="classify has no output 'value'; it has classes, scores"):
        pin(graded.target, "graded", signature_name="classify", method="classify", outputs=["value"])
    with pytest.raises(ValueError, match="not 'guess'"):
        pin(graded.target, "graded", method="guess")  # type: ignore[arg-type]
    model = pin(graded.target, "graded", signature_name="classify", method="classify")
    with pytest.raises(ColumnError, match="which column has the serialized"):
        model.output_schema(pa.schema([("a", pa.int64())]))
