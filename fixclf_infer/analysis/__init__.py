"""Measures of representations and heads, in torch.

    ClassSeparation, class_separation   R², how much of the distances lies between classes
    cka, MinibatchCKA                   similarity of two representations of the same inputs
    Sparsity, record_sparsity           zeros among activations
    knn_predict, linear_transfer        what a representation is worth on other classes
    compatibility                       two models' embeddings in one gallery
    HeadCurves                          α and norms along a training
    coherence, twins                    cosines of a dense head's rows; rows nearly identical

Sums are float64 whatever the dtype of the features. docs/analysis.md has examples.
"""

from .alignment import MinibatchCKA, cka
from .curves import HeadCurves
from .galleries import Compatibility, compatibility
from .rows import Coherence, Twins, coherence, twins
from .separation import ClassSeparation, class_separation
from .sparsity import Sparsity, record_sparsity
from .transfer import LinearTransfer, knn_predict, linear_transfer

__all__ = [
    "ClassSeparation",
    "Coherence",
    "Compatibility",
    "HeadCurves",
    "LinearTransfer",
    "MinibatchCKA",
    "Sparsity",
    "Twins",
    "cka",
    "class_separation",
    "coherence",
    "compatibility",
    "knn_predict",
    "linear_transfer",
    "record_sparsity",
    "twins",
]
