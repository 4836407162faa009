"""What a file's metadata records: the format's version, and where its codebooks came from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any

from onnx import ModelProto, helper

from ..codebooks import FAMILIES, Codebook, from_identity, versions
from ..fileformat import FORMAT_VERSION

FORMAT_KEY = "ai.fixclf.format_version"
CODEBOOKS_KEY = "ai.fixclf.codebooks"  # JSON: a list of `Codebook.identity()`


def record(model: ModelProto, books: Iterable[Codebook]) -> None:
    """Writes the format's version, and the identities of those codebooks that a name rebuilds."""
    identities = {book.digest: book.identity() for book in books if book.kind in FAMILIES}
    values = {
        **_values(model),
        FORMAT_KEY: str(FORMAT_VERSION),
        CODEBOOKS_KEY: json.dumps(list(identities.values())),
    }
    helper.set_model_props(model, values)


def check_metadata(model: ModelProto) -> None:
    """Raises ValueError for a newer format, or a codebook that this version does not have."""
    version = _values(model).get(FORMAT_KEY, "")
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise ValueError(
            f"the model's format version is {version}, written by a newer fixclf_infer; this one "
            f"reads up to {FORMAT_VERSION}"
        )
    for identity in _identities(model):
        kind, recorded = identity.get("kind"), identity.get("version")
        if kind not in FAMILIES:
            raise ValueError(f"the metadata records a codebook of unknown kind {kind!r}")
        here = versions(kind)
        if recorded not in here:
            raise ValueError(
                f"the metadata records version {recorded} of the codebook {kind!r}, but this "
                f"fixclf_infer has version {' and '.join(map(str, here))}"
            )


def recorded_codebooks(model: ModelProto) -> list[Codebook]:
    """The recorded codebooks, rebuilt. ValueError if a digest is another one than recorded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of identical rows, which whoever exported was told
        return [from_identity(identity) for identity in _identities(model)]


def _values(model: ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def _identities(model: ModelProto) -> list[dict[str, Any]]:
    try:
        return [dict(i) for i in json.loads(_values(model).get(CODEBOOKS_KEY, "[]"))]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata {CODEBOOKS_KEY} is not a JSON list of objects") from error
