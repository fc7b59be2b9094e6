"""`tensorflow.serving.SSLConfig`, which tensorflow-serving-api leaves out.

The message is defined in TensorFlow Serving's `tensorflow_serving/config/ssl_config.proto` and belongs to
no released Python package. Should a later tensorflow-serving-api bring it, that one is used; until then
it is made here, in a descriptor pool of its own, where it collides with nobody's copy.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from aioserving import _proto

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["ssl_config_class"]

_NAME = "tensorflow.serving.SSLConfig"


@functools.cache
def ssl_config_class() -> type[Message]:
    """The message class, one per process."""
    try:
        found: type[Message] = _proto.load_module("tensorflow_serving.config.ssl_config_pb2").SSLConfig
    except ImportError:
        return _make()
    return found


def _make() -> type[Message]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tensorflow_serving/config/ssl_config.proto", package="tensorflow.serving", syntax="proto3"
    )
    message = file.message_type.add(name="SSLConfig")
    for number, name in enumerate(("server_key", "server_cert", "custom_ca", "client_verify"), start=1):
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_BOOL if name == "client_verify" else kinds.TYPE_STRING,
            label=kinds.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    made: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(_NAME))
    return made
