"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A record is its length (uint64), the masked CRC-32C of that, the data, and the masked CRC-32C of the data, little-endian
(tensorflow/core/lib/io/record_writer.h). The message is declared here and parsed by the protobuf package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.importers.source import needs
from robopolicy.spec import Array

_MASK_DELTA = 0xA282EAD8
_EXTRA = "rlds"


def read_records(file: Path) -> Iterator[bytes]:
    """The data of each record, one in memory at a time.

    Raises:
        DatasetError: the file is cut short inside a record, or a checksum differs: any flipped bit is found.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        number = 0
        while stream.tell() < size:
            header = stream.read(12)
            if len(header) < 12:
                raise _damaged(file, number, "is cut short")
            if _masked_crc(header[:8]) != header[8:]:
                raise _damaged(file, number, "has a length whose checksum differs")
            length = int.from_bytes(header[:8], "little")
            if length + 4 > size - stream.tell():
                raise _damaged(file, number, "is cut short")
            data = stream.read(length)
            if _masked_crc(data) != stream.read(4):
                raise _damaged(file, number, "has data whose checksum differs")
            yield data
            number += 1


def parse_example(data: bytes) -> dict[str, Array | list[bytes]]:
    """Features of a serialized tf.train.Example: float32 [N], int64 [N] or a list of bytes.

    Raises:
        DatasetError: it is no such message.
    """
    example = _example_class()()
    try:
        example.ParseFromString(data)
    except needs("google.protobuf.message", _EXTRA).DecodeError as error:
        raise DatasetError(f"a record is no tf.train.Example ({error})") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> Array | list[bytes]:
    if feature.HasField("bytes_list"):
        return list(feature.bytes_list.value)
    if feature.HasField("int64_list"):
        return np.array(feature.int64_list.value, np.int64)
    return np.array(feature.float_list.value, np.float32)


def _damaged(file: Path, number: int, what: str) -> DatasetError:
    return DatasetError(f"{file}: record {number} {what}; restore the file from a copy")


def _masked_crc(data: bytes) -> bytes:
    crc = needs("google_crc32c", _EXTRA).value(data)
    return ((((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF).to_bytes(4, "little")


@lru_cache(maxsize=1)
def _example_class() -> Any:
    """tf.train.Example (tensorflow/core/example/{example,feature}.proto), in a pool of its own."""
    descriptors = needs("google.protobuf.descriptor_pb2", _EXTRA)
    field = descriptors.FieldDescriptorProto
    file = descriptors.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def message(name: str, fields: Mapping[str, tuple[int, int, str]], oneof: str = "") -> Any:
        """{field name: (number, type, message type)}; all fields but maps and those of a oneof are repeated."""
        added = file.message_type.add(name=name)
        if oneof:
            added.oneof_decl.add(name=oneof)
        for key, (number, kind, type_name) in fields.items():
            given = {"type_name": f".tensorflow.{type_name}"} if type_name else {}
            single = bool(oneof) or name == "Example"
            label = field.LABEL_OPTIONAL if single else field.LABEL_REPEATED
            added.field.add(name=key, number=number, type=kind, label=label, **given, **({"oneof_index": 0} if oneof else {}))
        return added

    message("BytesList", {"value": (1, field.TYPE_BYTES, "")})
    message("FloatList", {"value": (1, field.TYPE_FLOAT, "")})
    message("Int64List", {"value": (1, field.TYPE_INT64, "")})
    lists = ("Bytes", "Float", "Int64")
    kinds = {f"{kind.lower()}_list": (i, field.TYPE_MESSAGE, f"{kind}List") for i, kind in enumerate(lists, start=1)}
    message("Feature", kinds, oneof="kind")
    features = message("Features", {"feature": (1, field.TYPE_MESSAGE, "Features.FeatureEntry")})
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    value = {"type": field.TYPE_MESSAGE, "type_name": ".tensorflow.Feature", "label": field.LABEL_OPTIONAL}
    entry.field.add(name="value", number=2, **value)
    message("Example", {"features": (1, field.TYPE_MESSAGE, "Features")})
    pool = needs("google.protobuf.descriptor_pool", _EXTRA).DescriptorPool()
    pool.Add(file)
    factory = needs("google.protobuf.message_factory", _EXTRA)
    return factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
