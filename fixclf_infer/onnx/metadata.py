"""What a file's metadata records: where its codebooks came from.

A key for each codebook, so that models of several heads can be merged: tools refuse two models with
different values of one key. Format version 1 had one key for all, and one for the version.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any

from onnx import ModelProto, helper

from ..codebooks import FAMILIES, Codebook, from_identity, versions
from ..fileformat import FORMAT_VERSION

CODEBOOK_KEY = "ai.fixclf.codebook."  # and the digest's first digits: JSON, `Codebook.identity()`
_FORMAT_KEY_1 = "ai.fixclf.format_version"
_CODEBOOKS_KEY_1 = "ai.fixclf.codebooks"  # JSON: a list of identities


def record(model: ModelProto, books: Iterable[Codebook]) -> None:
    """Adds the identities of those codebooks that a name rebuilds."""
    named = [book.identity() for book in books if book.kind in FAMILIES]
    _write(model, [*_identities(model), *named])


def one_key_each(model: ModelProto) -> None:
    """Rewrites the metadata of format version 1 as that of version 2."""
    _write(model, _identities(model))


def check_metadata(model: ModelProto) -> None:
    """Raises ValueError for a newer format, or a codebook that this version does not have."""
    version = _values(model).get(_FORMAT_KEY_1, "")
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


def _write(model: ModelProto, identities: Iterable[dict[str, Any]]) -> None:
    values = {**_values(model)}
    for old in (_FORMAT_KEY_1, _CODEBOOKS_KEY_1):
        values.pop(old, None)
    for identity in identities:
        values[CODEBOOK_KEY + str(identity["digest"])[:12]] = json.dumps(identity)
    helper.set_model_props(model, values)


def _values(model: ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def _identities(model: ModelProto) -> list[dict[str, Any]]:
    values = _values(model)
    found = []
    for key, value in values.items():
        try:
            if key.startswith(CODEBOOK_KEY):
                found.append(dict(json.loads(value)))
            elif key == _CODEBOOKS_KEY_1:
                found += [dict(i) for i in json.loads(value)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"the metadata {key} is not JSON of a codebook's identity") from error
    return found
