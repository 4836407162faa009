"""`merge_models`: onnx.compose for models with fixed heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import ModelProto

from .body import append_bodies
from .metadata import one_key_each
from .model import without_function
from .schema import DOMAINS


def merge_models(
    first: ModelProto, second: ModelProto, io_map: Sequence[tuple[str, str]], **options: Any
) -> ModelProto:
    """`onnx.compose.merge_models` for models of which one or both have fixed heads.

    onnx.compose refuses two models that have functions of one name, which the portable bodies of
    heads always have, and after a prefix the library does not know the operator. So the bodies are
    left out of the merge, and made again for the merged model.

    Args:
        first, second: with their tensors loaded.
        io_map: outputs of the first and the inputs of the second that they become.
        options: those of onnx.compose.merge_models: prefix1, prefix2, inputs, outputs, ….

    Raises ValueError for what onnx.compose or `export`'s portable=True refuses.
    """
    portable = not (without_function(first) or without_function(second))
    parts = (_without_bodies(first), _without_bodies(second))
    merged: ModelProto = onnx.compose.merge_models(*parts, io_map=list(io_map), **options)
    if portable:
        append_bodies(merged)
    return merged


def _without_bodies(model: ModelProto) -> ModelProto:
    part = ModelProto()
    part.CopyFrom(model)
    del part.functions[:]
    part.functions.extend(f for f in model.functions if f.domain not in DOMAINS)
    one_key_each(part)
    return part
