"""The answer to a Predict call: arrays by output name, with the message they came in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aioserving import _proto
from aioserving._types import Array
from aioserving.attempts import Attempt

if TYPE_CHECKING:
    from aioserving.messages import ModelSpec

__all__ = ["PredictResult"]


class PredictResult(Mapping[str, Array]):
    """Output arrays by name.

    Numeric arrays are read-only views of the response as it was received, so they cost no copy and
    keep it in memory; ``result["scores"].copy()`` gives a writable array of its own. Strings are
    object arrays of bytes.
    """

    __slots__ = ("_model_spec", "_outputs", "_serialized", "attempts")

    def __init__(
        self,
        outputs: dict[str, Array],
        model_spec: bytes,
        serialized: bytes,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        self._outputs = outputs
        self._model_spec = model_spec
        self._serialized = serialized
        #: The story of the call: where it went, how long it took; more than one if it was tried again.
        self.attempts = attempts

    def __getitem__(self, name: str) -> Array:
        try:
            return self._outputs[name]
        except KeyError:
            has = ", ".join(map(repr, self._outputs)) or "none"
            raise KeyError(f"no output {name!r}; the outputs are {has}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __contains__(self, name: object) -> bool:
        return name in self._outputs

    @property
    def model_spec(self) -> ModelSpec:
        """The model that answered: ``name``, ``version`` as the server resolved it, ``signature_name``."""
        from aioserving.messages import ModelSpec

        return ModelSpec.from_bytes(self._model_spec)

    @property
    def serialized(self) -> bytes:
        """The PredictResponse as it was received."""
        return self._serialized

    @property
    def proto(self) -> Any:
        """The `tensorflow_serving.apis.predict_pb2.PredictResponse`, parsed anew at each access."""
        return _proto.message_class("tensorflow.serving.PredictResponse").FromString(self._serialized)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in self._outputs.items())
        spec = self.model_spec
        return f"<PredictResult of {spec.name} version {spec.version}: {outputs or 'no outputs'}>"
