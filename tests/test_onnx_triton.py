"""The example for NVIDIA Triton server: its config follows the documented schema, and its model.

The schema is that part of triton-inference-server/common, protobuf/model_config.proto, that a model
of the onnxruntime backend on a CPU needs: names, numbers and types of the fields.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_tools
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx_tools import needs_library

from fixclf_infer.onnx import session, verify

EXAMPLE = Path(__file__).parents[1] / "examples" / "triton_server"
CONFIG = EXAMPLE / "models" / "fixed_head" / "config.pbtxt"

DATA_TYPES = [
    "INVALID",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
]
DATA_TYPES += ["STRING", "BF16"]
KINDS = ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]
# Message → field → (number, type, repeated).
SCHEMA: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ModelTensorReshape": {"shape": (1, "int64", True)},
    "ModelInput": {
        "name": (1, "string", False),
        "data_type": (2, "DataType", False),
        "dims": (4, "int64", True),
        "reshape": (5, "ModelTensorReshape", False),
    },
    "ModelOutput": {
        "name": (1, "string", False),
        "data_type": (2, "DataType", False),
        "dims": (3, "int64", True),
        "label_filename": (4, "string", False),
        "reshape": (5, "ModelTensorReshape", False),
    },
    "ModelInstanceGroup": {
        "name": (1, "string", False),
        "count": (2, "int32", False),
        "gpus": (3, "int32", True),
        "kind": (4, "Kind", False),
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, "int32", True),
        "max_queue_delay_microseconds": (2, "uint64", False),
    },
    "ModelOperations": {"op_library_filename": (1, "string", True)},
    "ModelParameter": {"string_value": (1, "string", False)},
    "ParametersEntry": {"key": (1, "string", False), "value": (2, "ModelParameter", False)},
    "ModelConfig": {
        "name": (1, "string", False),
        "platform": (2, "string", False),
        "max_batch_size": (4, "int32", False),
        "input": (5, "ModelInput", True),
        "output": (6, "ModelOutput", True),
        "instance_group": (7, "ModelInstanceGroup", True),
        "default_model_filename": (8, "string", False),
        "dynamic_batching": (11, "ModelDynamicBatching", False),
        "parameters": (14, "ParametersEntry", True),
        "backend": (17, "string", False),
        "model_operations": (18, "ModelOperations", False),
    },
}


def config_class() -> Any:
    """The message ModelConfig of SCHEMA."""
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    enums = {"DataType": [f"TYPE_{t}" for t in DATA_TYPES], "Kind": KINDS}
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            entry = message.field.add(name=field, number=number)
            entry.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind[0].islower():
                entry.type = getattr(kinds, f"TYPE_{kind.upper()}")
            else:
                entry.type = kinds.TYPE_ENUM if kind in enums else kinds.TYPE_MESSAGE
                entry.type_name = f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read(text: str) -> Any:
    return text_format.Parse(text, config_class()())


@pytest.mark.parametrize(
    "old, new",
    [("op_library_filename", "op_library"), ("TYPE_FP32", "TYPE_FLOAT"), ("[ 5 ]", '[ "5" ]')],
)
def test_the_schema_refuses_what_it_does_not_have(old: str, new: str) -> None:
    text = CONFIG.read_text()
    assert old in text
    with pytest.raises(text_format.ParseError):
        read(text.replace(old, new))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", EXAMPLE / "fill_repository.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_library
def test_the_repository(tmp_path: Path) -> None:
    script().fill(tmp_path)
    folder = tmp_path / "fixed_head"
    config = read((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend) == (folder.name, "onnxruntime")
    (library,) = config.model_operations.op_library_filename
    assert library == f"/models/{folder.name}/{onnx_tools.library_path().name}"
    assert (folder / Path(library).name).read_bytes() == onnx_tools.LIBRARY
    runtime = session(folder / "1" / "model.onnx")
    types = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}
    for given, documented in (
        (runtime.get_inputs(), config.input),
        (runtime.get_outputs(), config.output),
    ):
        assert [v.name for v in given] == [v.name for v in documented]
        for value, entry in zip(given, documented, strict=True):
            assert types[value.type] == DATA_TYPES[entry.data_type]
            shape = entry.reshape.shape if entry.HasField("reshape") else entry.dims
            assert value.shape == ["batch", *shape]
    assert verify(folder / "1" / "model.onnx", calls=1).ok
