"""Answers to Classify, Regress and MultiInference: classes and numbers per example, and as arrays.

Also what the server is certain to refuse about a signature, so that it need not be asked: the number and
names of inputs and outputs. An exporter's method name says nothing (TensorFlow 2 always writes Predict's),
nor does the declared dtype, which can lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from aioserving import _proto
from aioserving._types import Array
from aioserving.attempts import Attempt
from aioserving.errors import DecodeError, InvalidInputError
from aioserving.signature import Signature

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from aioserving.messages import InferenceTask, ModelSpec

__all__ = [
    "CLASSIFY",
    "REGRESS",
    "Classification",
    "ClassifyResult",
    "MultiInferenceResult",
    "RegressResult",
    "ScoredClass",
    "Task",
    "Tasks",
    "check_signature",
    "read_tasks",
]

#: Method names of MultiInference's tasks.
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

#: What MultiInference takes: ``("classify", signature_name)`` pairs, or `InferenceTask`s.
Tasks: TypeAlias = "Sequence[tuple[str, str | None] | InferenceTask | Message]"


class ScoredClass(NamedTuple):
    """One class of one example."""

    #: Name of the class; empty if the signature gives none.
    label: str
    #: Its score; 0 if the signature gives none.
    score: float
    #: Its place in the model's order.
    position: int


class Classification(Sequence[ScoredClass]):
    """The classes of one example, in the model's order."""

    __slots__ = ("_labels", "_scores")

    def __init__(self, labels: Array, scores: Array) -> None:
        self._labels = labels
        self._scores = scores

    @overload
    def __getitem__(self, index: int) -> ScoredClass: ...
    @overload
    def __getitem__(self, index: slice) -> list[ScoredClass]: ...
    def __getitem__(self, index: int | slice) -> ScoredClass | list[ScoredClass]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self._at(place) for place in places]
        return self._at(places)

    def _at(self, place: int) -> ScoredClass:
        return ScoredClass(self._labels[place], float(self._scores[place]), place)

    def __len__(self) -> int:
        return len(self._scores)

    def top(self, count: int = 1) -> list[ScoredClass]:
        """The `count` classes with the highest scores (or as many as there are), best first.

        Equal scores keep the model's order; NaN comes last.
        """
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        return [self._at(int(place)) for place in np.argsort(-self._scores, kind="stable")[:count]]

    @property
    def _best(self) -> ScoredClass:
        if not len(self):
            raise IndexError("the model gave no classes for this example")
        return self.top()[0]

    @property
    def label(self) -> str:
        """Label of the class with the highest score."""
        return self._best.label

    @property
    def score(self) -> float:
        """The highest score."""
        return self._best.score

    def __repr__(self) -> str:
        best = ", ".join(f"{item.label or item.position}: {item.score:.4g}" for item in self.top(3))
        more = ", …" if len(self) > 3 else ""
        return f"<Classification {best or 'without classes'}{more}>"


class _Answer:
    """What all results share: the message that they came in."""

    __slots__ = ("_attempts", "_model_spec", "_serialized")

    def __init__(self, model_spec: bytes, serialized: bytes) -> None:
        self._model_spec = model_spec
        self._serialized = serialized
        self._attempts: tuple[Attempt, ...] = ()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The story of the call: where it went, how long it took; more than one if it was tried again."""
        return self._attempts

    @property
    def model_spec(self) -> ModelSpec:
        """The model that answered: ``name``, ``version`` as the server resolved it, ``signature_name``."""
        from aioserving.messages import ModelSpec

        return ModelSpec.from_bytes(self._model_spec)

    @property
    def serialized(self) -> bytes:
        """The response as it was received (of a MultiInference task, its InferenceResult)."""
        return self._serialized

    def _described(self, what: str) -> str:
        spec = self.model_spec
        return f"<{type(self).__name__} of {spec.name} version {spec.version}: {what}>"


class ClassifyResult(_Answer, Sequence[Classification]):
    """The classes of each example: ``result[0].label``, ``result[0].top(3)``, or arrays of all."""

    __slots__ = ("_in_task", "_labels", "_scores")

    def __init__(
        self,
        labels: Array,
        scores: npt.NDArray[np.float32],
        model_spec: bytes,
        serialized: bytes,
        in_task: bool,
    ) -> None:
        super().__init__(model_spec, serialized)
        self._labels = labels
        self._scores = scores
        self._in_task = in_task

    @classmethod
    def from_response(cls, data: bytes) -> ClassifyResult:
        """Read a serialized ClassificationResponse.

        Raises:
            DecodeError: the bytes are none.
        """
        response = _parse("tensorflow.serving.ClassificationResponse", data)
        return cls(*_classes(response.result), response.model_spec.SerializeToString(), data, False)

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Scores, float32 (examples, classes), in the model's order; zeros if the signature gives none."""
        return self._scores

    @property
    def labels(self) -> Array:
        """Labels, an object array of str (examples, classes); empty ones if the signature gives none."""
        return self._labels

    @property
    def proto(self) -> Any:
        """The ClassificationResponse (of a MultiInference task, the InferenceResult), parsed anew."""
        name = "InferenceResult" if self._in_task else "ClassificationResponse"
        return _parse(f"tensorflow.serving.{name}", self._serialized)

    @overload
    def __getitem__(self, index: int) -> Classification: ...
    @overload
    def __getitem__(self, index: slice) -> list[Classification]: ...
    def __getitem__(self, index: int | slice) -> Classification | list[Classification]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return Classification(self._labels[index], self._scores[index])

    def __len__(self) -> int:
        return len(self._scores)

    def __repr__(self) -> str:
        examples, classes = self._scores.shape
        return self._described(f"{_counted(examples, 'example')}, {_counted(classes, 'class', 'es')}")


class RegressResult(_Answer, Sequence[float]):
    """The number found for each example, and all of them as an array: ``result.values``."""

    __slots__ = ("_in_task", "_values")

    def __init__(
        self, values: npt.NDArray[np.float32], model_spec: bytes, serialized: bytes, in_task: bool
    ) -> None:
        super().__init__(model_spec, serialized)
        self._values = values
        self._in_task = in_task

    @classmethod
    def from_response(cls, data: bytes) -> RegressResult:
        """Read a serialized RegressionResponse.

        Raises:
            DecodeError: the bytes are none.
        """
        response = _parse("tensorflow.serving.RegressionResponse", data)
        return cls(_numbers(response.result), response.model_spec.SerializeToString(), data, False)

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The numbers, float32 (examples,)."""
        return self._values

    @property
    def proto(self) -> Any:
        """The RegressionResponse (of a MultiInference task, the InferenceResult), parsed anew."""
        name = "InferenceResult" if self._in_task else "RegressionResponse"
        return _parse(f"tensorflow.serving.{name}", self._serialized)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            found: list[float] = self._values[index].tolist()
            return found
        return float(self._values[index])

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.4g}" for value in self._values[:3].tolist())
        more = ", …" if len(self) > 3 else ""
        return self._described(f"{_counted(len(self), 'example')}: {shown}{more}")


class MultiInferenceResult(_Answer, Sequence["ClassifyResult | RegressResult"]):
    """The result of each task, in the order of the request."""

    __slots__ = ("_results",)

    def __init__(
        self, results: list[ClassifyResult | RegressResult], model_spec: bytes, serialized: bytes
    ) -> None:
        super().__init__(model_spec, serialized)
        self._results = results

    @classmethod
    def from_response(cls, data: bytes) -> MultiInferenceResult:
        """Read a serialized MultiInferenceResponse.

        Raises:
            DecodeError: the bytes are none.
        """
        response = _parse("tensorflow.serving.MultiInferenceResponse", data)
        results: list[ClassifyResult | RegressResult] = []
        for result in response.results:
            spec, serialized = result.model_spec.SerializeToString(), result.SerializeToString()
            kind = result.WhichOneof("result")
            if kind == "classification_result":
                results.append(
                    ClassifyResult(*_classes(result.classification_result), spec, serialized, True)
                )
            elif kind == "regression_result":
                results.append(RegressResult(_numbers(result.regression_result), spec, serialized, True))
            else:
                raise DecodeError(f"task {len(results)} of a MultiInferenceResponse has no result")
        first = response.results[0].model_spec.SerializeToString() if results else b""
        return cls(results, first, data)

    @property
    def proto(self) -> Any:
        """The MultiInferenceResponse, parsed anew at each access."""
        return _parse("tensorflow.serving.MultiInferenceResponse", self._serialized)

    @overload
    def __getitem__(self, index: int) -> ClassifyResult | RegressResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClassifyResult | RegressResult]: ...
    def __getitem__(
        self, index: int | slice
    ) -> ClassifyResult | RegressResult | list[ClassifyResult | RegressResult]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        tasks = ", ".join(
            f"{type(item).__name__.removesuffix('Result').lower()} {item.model_spec.signature_name}"
            for item in self._results
        )
        return self._described(tasks or "no tasks")


def _parse(name: str, data: bytes) -> Any:
    from google.protobuf.message import DecodeError as ProtobufDecodeError

    try:
        return _proto.message_class(name).FromString(data)
    except ProtobufDecodeError as error:
        raise DecodeError(f"not a {name.rpartition('.')[2]}: {error}") from error


def _classes(result: Any) -> tuple[Array, npt.NDArray[np.float32]]:
    """Labels and scores (examples, classes) of a ClassificationResult message."""
    rows = [row.classes for row in result.classifications]
    width = len(rows[0]) if rows else 0
    if any(len(row) != width for row in rows):
        raise DecodeError("a ClassificationResult has examples with different numbers of classes")
    shape = (len(rows), width)
    scores = np.array([item.score for row in rows for item in row], np.float32).reshape(shape)
    labels = np.empty(shape, object)
    labels.ravel()[:] = [item.label for row in rows for item in row]
    return labels, scores


def _numbers(result: Any) -> npt.NDArray[np.float32]:
    return np.array([item.value for item in result.regressions], np.float32)


def _counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{'' if count == 1 else plural}"


# -- what is certain to be refused --------------------------------------------------------------------


def check_signature(signature: Signature, kind: str, method: str) -> None:
    """Refuse a signature that the server would refuse to classify or regress with.

    Args:
        signature: of the model that is called.
        kind: `CLASSIFY` or `REGRESS`.
        method: short name of the RPC, for the error.

    Raises:
        InvalidInputError: it has not exactly one input, named ``inputs``; or not the outputs for it.
    """
    verb = kind.rpartition("/")[2]
    why = ""
    if list(signature.inputs) != ["inputs"]:
        why = f"takes exactly one input, 'inputs'; it has {_listed(signature.inputs)}"
    elif kind == CLASSIFY and not 1 <= len(signature.outputs) <= 2:
        why = f"gives one or two outputs; it has {_listed(signature.outputs)}"
    elif kind == CLASSIFY and not {"classes", "scores"} & set(signature.outputs):
        why = f"gives 'classes' or 'scores' or both; it has {_listed(signature.outputs)}"
    elif kind == REGRESS and list(signature.outputs) != ["outputs"]:
        why = f"gives exactly one output, 'outputs'; it has {_listed(signature.outputs)}"
    if why:
        raise InvalidInputError(
            f"signature {signature.name!r} cannot be used to {verb}: one that can {why}",
            model=signature.model or None,
            method=method,
        )


class Task(NamedTuple):
    """One task of a MultiInference call."""

    #: `CLASSIFY` or `REGRESS` (or what a caller who wants no checks has written).
    method_name: str
    signature_name: str | None


def read_tasks(model: str, tasks: Any, *, check: bool = True) -> list[Task]:
    """The tasks that a caller gave, as pairs or as InferenceTasks.

    Raises:
        InvalidInputError: there are none, one is of another model or method, or two use one signature.
    """

    def refuse(what: str) -> InvalidInputError:
        return InvalidInputError(what, model=model, method="MultiInference")

    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise refuse(
            f"tasks must be a list of ('classify' or 'regress', signature), got {type(tasks).__name__}"
        )
    read: list[Task] = []
    seen: dict[str, int] = {}
    for index, task in enumerate(tasks):
        message = getattr(task, "pb", task)
        if (
            getattr(getattr(message, "DESCRIPTOR", None), "full_name", "")
            == "tensorflow.serving.InferenceTask"
        ):
            name = message.model_spec.name
            if check and name and name != model:
                raise refuse(f"task {index} is for model {name!r}: all tasks of one call are for one model")
            method, signature = message.method_name, message.model_spec.signature_name or None
        else:
            if not isinstance(task, tuple) or len(task) != 2:
                raise refuse(f"task {index} must be ('classify' or 'regress', signature), got {task!r}")
            method, signature = task
            if not isinstance(method, str) or not isinstance(signature, str | None):
                raise refuse(f"task {index} must be ('classify' or 'regress', signature), got {task!r}")
        method = {"classify": CLASSIFY, "regress": REGRESS}.get(method, method)
        if check:
            if method not in (CLASSIFY, REGRESS):
                raise refuse(f"task {index} has method {method!r}: it must be 'classify' or 'regress'")
            key = signature or "serving_default"
            if key in seen:
                raise refuse(
                    f"tasks {seen[key]} and {index} both use signature {key!r}: each may be used once"
                )
            seen[key] = index
        read.append(Task(method, signature))
    if check and not read:
        raise refuse("there are no tasks: the server needs at least one")
    return read


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
