"""What a model says of itself: GetModelMetadata, SignatureDef, TensorInfo and the shape of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aioserving.dtypes import DataType
from aioserving.messages._any import AnyMessage
from aioserving.messages._spec import ModelSpec
from aioserving.messages._structures import TypeSpecProto
from aioserving.messages._values import Where
from aioserving.messages._view import DictView, MessageLike, View, field, positional

if TYPE_CHECKING:
    from typing import TypeAlias

    from aioserving.messages._view import (
        EnumOf,
        Items,
        Many,
        MapTo,
        MapToOr,
        Maybe,
        PbOr,
        Scalar,
        Sub,
        SubOr,
        Tensors,
    )

    Sizes: TypeAlias = "Iterable[int | TensorShapeProto.Dim | MessageLike | None]"

__all__ = [
    "GetModelMetadataRequest",
    "GetModelMetadataResponse",
    "SignatureDef",
    "SignatureDefMap",
    "TensorInfo",
    "TensorShapeProto",
]


class TensorShapeProto(View, message="tensorflow.TensorShapeProto"):
    """The shape of a tensor; a list of sizes stands for it, None for a size that is not known."""

    __slots__ = ()

    class Dim(View, message="tensorflow.TensorShapeProto.Dim"):
        """One dimension."""

        __slots__ = ()

        size: Scalar[int] = field("The size; -1 if it is not known.")
        name: Scalar[str] = field("A name, mostly empty.")

    if TYPE_CHECKING:
        pb: PbOr[Sizes] = positional(default=None, kw_only=False)

    dim: Many[Dim] = field("The dimensions.")
    unknown_rank: Scalar[bool] = field("Whether not even the number of dimensions is known.")

    @property
    def sizes(self) -> tuple[int | None, ...] | None:
        """The size of each dimension, None where it is not known; None alone if the rank is not known."""
        pb = self.pb
        return None if pb.unknown_rank else tuple(None if d.size < 0 else int(d.size) for d in pb.dim)

    @classmethod
    def _expected(cls) -> str:
        return "a TensorShapeProto (or a list of sizes, or a dict of its fields)"

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object) -> bool:
        if isinstance(value, (str, bytes, Mapping, View)) or not isinstance(value, Iterable):
            return False
        sizes = [
            {"size": -1 if size is None else size} if size is None or hasattr(size, "__index__") else size
            for size in value
        ]
        cls._fields["dim"].fill(pb, sizes)
        return True


class TensorInfo(View, message="tensorflow.TensorInfo"):
    """An input or output of a signature: its name in the graph, dtype and shape.

    `name`, `coo_sparse` and `composite_tensor` exclude each other.
    """

    __slots__ = ()

    class CooSparse(View, message="tensorflow.TensorInfo.CooSparse"):
        """The three tensors that make up a sparse one."""

        __slots__ = ()

        values_tensor_name: Scalar[str] = field("Name of the tensor of values.")
        indices_tensor_name: Scalar[str] = field("Name of the tensor of indices.")
        dense_shape_tensor_name: Scalar[str] = field("Name of the tensor that holds the dense shape.")

    class CompositeTensor(View, message="tensorflow.TensorInfo.CompositeTensor"):
        """The tensors that make up a composite one, such as a ragged tensor."""

        __slots__ = ()

        type_spec: Sub[TypeSpecProto] = field("What they make up.")
        components: Many[TensorInfo] = field("The tensors.")

    name: Maybe[str] = field("Name of the tensor in the graph, or None.")
    coo_sparse: Sub[CooSparse] = field("The tensors of a sparse one.")
    composite_tensor: Sub[CompositeTensor] = field("The tensors of a composite one.")
    dtype: EnumOf[DataType] = field("The data type; metadata of TF1 models may name reference types.")
    tensor_shape: SubOr[TensorShapeProto, Sizes] = field("The shape.")


class SignatureDef(View, message="tensorflow.SignatureDef"):
    """A signature: the named inputs it takes and the named outputs it gives."""

    __slots__ = ()

    inputs: MapTo[TensorInfo] = field("The inputs by name.")
    outputs: MapTo[TensorInfo] = field("The outputs by name.")
    method_name: Scalar[str] = field(
        "What it was exported for; TF2 writes ``tensorflow/serving/predict`` always."
    )
    defaults: Tensors = field("Values of inputs that may be left out, by name.")


class SignatureDefMap(
    DictView[str, SignatureDef, MessageLike],
    message="tensorflow.serving.SignatureDefMap",
    content="signature_def",
):
    """Signatures by name, as a dict."""

    __slots__ = ()

    signature_def: MapTo[SignatureDef] = field("The signatures by name.")


class GetModelMetadataRequest(View, message="tensorflow.serving.GetModelMetadataRequest"):
    """A GetModelMetadata call."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model and version.")
    metadata_field: Items[str] = field("What to return; servers know ``signature_def`` only.")


class GetModelMetadataResponse(View, message="tensorflow.serving.GetModelMetadataResponse", readonly=True):
    """The answer to GetModelMetadata; read-only."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model, and the version that answered.")
    metadata: MapToOr[AnyMessage, View] = field("The metadata, packed, by name of the field asked for.")

    @property
    def signature_def(self) -> SignatureDefMap | None:
        """The signatures, unpacked; None if the response has none.

        Raises:
            DecodeError: the bytes in the response are no SignatureDefMap.
        """
        packed = self.metadata.get("signature_def")
        return None if packed is None else packed.unpack(SignatureDefMap)
