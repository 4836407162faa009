"""Heads of other packages as fixed heads with the same logits; exact conversion of linear pairs.

    from_hadamard_proj     the original implementation's Hadamard head
    from_proj              its random orthogonal head
    from_brevitas          Brevitas' HadamardClassifier, for batches of one row
    from_etf               the simplex (ETF) heads of neural-collapse code
    from_linear            a torch.nn.Linear with ±m entries, or with rows of one norm
    convert_linear_pair    two linear layers in a row, in place

Each takes a module or a state_dict and states how far the logits may differ; what it can't keep it
refuses with ValueError in one sentence. docs/interop.md has examples.
"""

from .brevitas import from_brevitas
from .etf import from_etf
from .fixed_linear import FixedLinear
from .linear import from_linear
from .original import from_hadamard_proj, from_proj
from .pair import ConvertedPair, convert_linear_pair

__all__ = [
    "ConvertedPair",
    "FixedLinear",
    "convert_linear_pair",
    "from_brevitas",
    "from_etf",
    "from_hadamard_proj",
    "from_linear",
    "from_proj",
]
