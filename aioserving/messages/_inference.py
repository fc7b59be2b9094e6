"""Classify, Regress and MultiInference: examples in, classes and numbers out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aioserving.messages._examples import Input
from aioserving.messages._spec import ModelSpec
from aioserving.messages._view import ListView, MessageLike, View, field

if TYPE_CHECKING:
    from typing import TypeAlias

    from aioserving.messages._view import Many, ManyOr, Scalar, Sub, SubOr

    #: What stands for the classes of one example.
    ClassesLike: TypeAlias = "MessageLike | Iterable[Class | MessageLike]"

__all__ = [
    "Class",
    "ClassificationRequest",
    "ClassificationResponse",
    "ClassificationResult",
    "Classifications",
    "InferenceResult",
    "InferenceTask",
    "MultiInferenceRequest",
    "MultiInferenceResponse",
    "Regression",
    "RegressionRequest",
    "RegressionResponse",
    "RegressionResult",
]


class Class(View, message="tensorflow.serving.Class"):
    """One class, and how likely it is."""

    __slots__ = ()

    label: Scalar[str] = field("Name of the class; empty when the signature has no ``classes``.")
    score: Scalar[float] = field("Its score; zero when the signature has no ``scores``.")


class Classifications(
    ListView[Class, MessageLike], message="tensorflow.serving.Classifications", content="classes"
):
    """The classes of one example, as a list."""

    __slots__ = ()

    classes: Many[Class] = field("The classes, in the order of the model.")


class ClassificationResult(
    ListView[Classifications, "ClassesLike"],
    message="tensorflow.serving.ClassificationResult",
    content="classifications",
):
    """What Classify found, as a list with an item per example."""

    __slots__ = ()

    classifications: ManyOr[Classifications, Iterable[Class | MessageLike]] = field(
        "The classes of each example."
    )


class ClassificationRequest(View, message="tensorflow.serving.ClassificationRequest"):
    """A Classify call."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model, version and signature.")
    input: Sub[Input] = field("The examples.")


class ClassificationResponse(View, message="tensorflow.serving.ClassificationResponse", readonly=True):
    """The answer to Classify; read-only."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model and signature, and the version that answered.")
    result: SubOr[ClassificationResult, Iterable[Classifications | ClassesLike]] = field(
        "Classes per example."
    )


class Regression(View, message="tensorflow.serving.Regression"):
    """The number found for one example."""

    __slots__ = ()

    value: Scalar[float] = field("The number.")


class RegressionResult(
    ListView[Regression, MessageLike],
    message="tensorflow.serving.RegressionResult",
    content="regressions",
):
    """What Regress found, as a list with an item per example."""

    __slots__ = ()

    regressions: Many[Regression] = field("The numbers.")


class RegressionRequest(View, message="tensorflow.serving.RegressionRequest"):
    """A Regress call."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model, version and signature.")
    input: Sub[Input] = field("The examples.")


class RegressionResponse(View, message="tensorflow.serving.RegressionResponse", readonly=True):
    """The answer to Regress; read-only."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model and signature, and the version that answered.")
    result: SubOr[RegressionResult, Iterable[Regression | MessageLike]] = field(
        "The number for each example."
    )


class InferenceTask(View, message="tensorflow.serving.InferenceTask"):
    """One signature to run on the examples of a MultiInference call."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The signature, and the model, which is the same for all tasks.")
    method_name: Scalar[str] = field("``tensorflow/serving/classify`` or ``tensorflow/serving/regress``.")


class InferenceResult(View, message="tensorflow.serving.InferenceResult"):
    """What one task of a MultiInference call found; the two results exclude each other."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model and signature, and the version that answered.")
    classification_result: SubOr[ClassificationResult, Iterable[Classifications | ClassesLike]] = field(
        "The result of a classify task."
    )
    regression_result: SubOr[RegressionResult, Iterable[Regression | MessageLike]] = field(
        "The result of a regress task."
    )


class MultiInferenceRequest(View, message="tensorflow.serving.MultiInferenceRequest"):
    """A MultiInference call: several signatures of one model, on the same examples."""

    __slots__ = ()

    tasks: Many[InferenceTask] = field("The signatures to run.")
    input: Sub[Input] = field("The examples.")


class MultiInferenceResponse(
    ListView[InferenceResult, MessageLike],
    message="tensorflow.serving.MultiInferenceResponse",
    content="results",
    readonly=True,
):
    """The answer to MultiInference, as a list with an item per task; read-only."""

    __slots__ = ()

    results: Many[InferenceResult] = field("The result of each task, in the order of the request.")
