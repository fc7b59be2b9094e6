"""Predict: tensors in, tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioserving.messages._spec import ModelSpec
from aioserving.messages._values import ProtoEnum, enum_of
from aioserving.messages._view import View, field

if TYPE_CHECKING:
    from aioserving.messages._view import EnumOf, Items, MapOf, Maybe, MaybeEnumOf, Scalar, Sub, Tensors

__all__ = ["PredictRequest", "PredictResponse", "PredictStreamedOptions"]


class PredictStreamedOptions(
    View, message="tensorflow.serving.PredictStreamedOptions", module="tensorflow_serving.apis.predict_pb2"
):
    """Options of a streamed Predict; the open-source server ignores them."""

    __slots__ = ()

    @enum_of("tensorflow.serving.PredictStreamedOptions.RequestState")
    class RequestState(ProtoEnum):
        """Where in a split request a message stands."""

        NONE = 0
        SPLIT = 1
        END_SPLIT = 2
        CANCEL = 3

    request_state: EnumOf[RequestState] = field("Where in a split request this one stands.")
    split_dimensions: MapOf[int] = field("The dimension along which each input is split.")
    return_single_response: Scalar[bool] = field("Whether all answers are put into one.")


class PredictRequest(View, message="tensorflow.serving.PredictRequest"):
    """A Predict call.

    `inputs` is a dict of arrays by input name. Arrays that are read are read-only: assign to change one.
    """

    __slots__ = ()

    class RequestOptions(View, message="tensorflow.serving.PredictRequest.RequestOptions"):
        """Options for servers of language models; the open-source server ignores them."""

        __slots__ = ()

        @enum_of("tensorflow.serving.PredictRequest.RequestOptions.DeterministicMode")
        class DeterministicMode(ProtoEnum):
            """How repeatable answers have to be."""

            DETERMINISTIC_MODE_UNSPECIFIED = 0
            FIXED_DECODER_SLOT = 1

        class Handshake(View, message="tensorflow.serving.PredictRequest.RequestOptions.Handshake"):
            """What is said before a large request."""

            __slots__ = ()

            estimated_payload_bytes: Scalar[int] = field("Size of the request to come, in bytes.")

        client_id: Maybe[bytes] = field("Who is asking, or None.")
        deterministic_mode: MaybeEnumOf[DeterministicMode] = field("How repeatable answers are, or None.")
        return_additional_arrays_from_prefill: Maybe[bool] = field("Whether to return arrays of the prefill.")
        return_stoptokens: Items[int] = field("The tokens that end an answer and are returned.")
        return_all_stoptokens: Maybe[bool] = field("Whether all tokens that end an answer are returned.")
        max_cache_length: Maybe[int] = field("Length of the cache, or None.")
        handshake: Sub[Handshake] = field("What is said before a large request.")

    model_spec: Sub[ModelSpec] = field("The model, version and signature.")
    inputs: Tensors = field("The input tensors, by name of the input in the signature.")
    output_filter: Items[str] = field("The outputs to return; all if empty.")
    predict_streamed_options: Sub[PredictStreamedOptions] = field("Options of a streamed Predict.")
    client_id: Maybe[bytes] = field("Who is asking, or None; ignored by the open-source server.")
    request_options: Sub[RequestOptions] = field("Options for servers of language models.")


class PredictResponse(View, message="tensorflow.serving.PredictResponse", readonly=True):
    """The answer to Predict; read-only."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model and signature, and the version that answered.")
    outputs: Tensors = field("The output tensors, by name of the output in the signature.")
