"""A codebook's identity in a state_dict."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ..codebooks import Codebook, from_identity

# Of one size for every codebook, as distributed checkpoints need, and of a dtype that survives
# casts and averages of state_dicts.
_BYTES = 256


def written(book: Codebook) -> Tensor:
    """JSON as float32 numbers that are its bytes, [256]."""
    text = json.dumps(book.identity()).ljust(_BYTES)
    return torch.tensor(list(text.encode()), dtype=torch.float32)


def read(state: Tensor, book: Codebook, owner: str) -> Codebook:
    """The codebook that a state_dict names, for a module `owner` that has `book`.

    Raises ValueError for another JSON or none, other sizes, and bits that this version does not
    make.
    """
    try:
        text = bytes(round(byte) for byte in state.detach().double().tolist())
        identity = dict(json.loads(text.decode()).items())
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the state_dict's codebook identity is not the JSON that {owner} writes"
        ) from error
    for name in ("in_features", "num_classes"):
        if identity.get(name) != getattr(book, name):
            raise ValueError(
                f"the state_dict's codebook has {name}={identity.get(name)}, but this {owner} has "
                f"{getattr(book, name)}"
            )
    if identity == book.identity():
        return book
    return from_identity(identity, book.dense if identity.get("kind") == "matrix" else None)
