"""How the versions of a model are: GetModelStatus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioserving.messages._enums import Code
from aioserving.messages._spec import ModelSpec
from aioserving.messages._values import ProtoEnum, enum_of
from aioserving.messages._view import ListView, MessageLike, View, field

if TYPE_CHECKING:
    from aioserving.messages._view import EnumOf, Many, Scalar, Sub

__all__ = ["GetModelStatusRequest", "GetModelStatusResponse", "ModelVersionStatus", "Status"]


class Status(View, message="tensorflow.serving.StatusProto"):
    """How something went."""

    __slots__ = ()

    error_code: EnumOf[Code] = field("The code; ``Code.OK`` if nothing is wrong.")
    error_message: Scalar[str] = field("What went wrong; empty if nothing did.")


class ModelVersionStatus(View, message="tensorflow.serving.ModelVersionStatus"):
    """One version of a model."""

    __slots__ = ()

    @enum_of("tensorflow.serving.ModelVersionStatus.State")
    class State(ProtoEnum):
        """The life of a version, in this order; an error jumps to END."""

        UNKNOWN = 0
        START = 10
        LOADING = 20
        AVAILABLE = 30
        UNLOADING = 40
        END = 50

    version: Scalar[int] = field("Number of the version.")
    state: EnumOf[State] = field("Where in its life it is.")
    status: Sub[Status] = field("Why loading it failed, or ``Code.OK``.")

    @property
    def error(self) -> Status | None:
        """The status if it is an error, else None."""
        return self.status if self.pb.status.error_code else None


class GetModelStatusRequest(View, message="tensorflow.serving.GetModelStatusRequest"):
    """A GetModelStatus call."""

    __slots__ = ()

    model_spec: Sub[ModelSpec] = field("The model, and a version or none; labels are ignored by the server.")


class GetModelStatusResponse(
    ListView[ModelVersionStatus, MessageLike],
    message="tensorflow.serving.GetModelStatusResponse",
    content="model_version_status",
    readonly=True,
):
    """The answer to GetModelStatus, as a list of versions; read-only."""

    __slots__ = ()

    model_version_status: Many[ModelVersionStatus] = field("The versions, highest first.")
