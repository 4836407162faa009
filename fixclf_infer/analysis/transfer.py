"""What frozen features are worth for other classes: nearest neighbours and logistic regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks

CHUNK = 2**24  # entries of a temporary
PENALTIES = tuple(10.0**exponent for exponent in range(-6, 3))


def nearest(queries: Tensor, gallery: Tensor, k: int, metric: str) -> Tensor:
    """The k nearest rows of the gallery, [queries, k], nearest first."""
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must have the same features, got {queries.shape[1]} and "
            f"{gallery.shape[1]}"
        )
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must lie in [1, {len(gallery)}], the rows of the gallery, got {k}")
    half = gallery.new_zeros(len(gallery))
    if metric == "cosine":
        queries, gallery = checks.unit(queries), checks.unit(gallery)
    else:  # ‖q − g‖² = ‖q‖² − 2 (⟨q, g⟩ − ‖g‖²/2), about a point amid the gallery
        center = gallery.mean(0)
        queries, gallery = queries - center, gallery - center
        half = gallery.square().sum(1) / 2
    step = max(1, CHUNK // len(gallery))
    chunks = [(part @ gallery.T - half).topk(k, dim=1)[1] for part in torch.split(queries, step)]
    return torch.cat(chunks) if chunks else torch.empty(0, k, dtype=torch.long)


def knn_predict(
    queries: Tensor, gallery: Tensor, labels: Tensor, *, k: int = 1, metric: str = "cosine"
) -> Tensor:
    """The class of each query, int64 [queries]: the most frequent one among its k nearest rows of
    the gallery, the lowest on ties (as scikit-learn's KNeighborsClassifier).

    queries: [queries, N]; gallery: [rows, N]; labels: integers [rows]; metric: "cosine" or
        "euclidean".
    """
    q, g = checks.matrix("queries", queries), checks.matrix("gallery", gallery)
    ids = checks.labels("labels", labels, len(g)).to(g.device)
    votes = ids[nearest(q, g, k, metric)]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    most = counts == counts.amax(1, keepdim=True)
    return votes.where(most, torch.iinfo(torch.int64).max).amin(1)


@dataclass(frozen=True)
class LinearTransfer:
    """Logistic regression on frozen features, with the penalty that held-out rows chose."""

    l2: float
    weight: Tensor  # float64 [K, N]
    bias: Tensor  # float64 [K]
    holdout: dict[float, float]  # accuracy on the held-out rows for each penalty tried

    def predict(self, features: Tensor) -> Tensor:
        """Classes, int64 [rows]."""
        return (checks.matrix("features", features) @ self.weight.T + self.bias).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The fraction of rows [rows, N] whose class is right."""
        ids = checks.labels("labels", labels, len(features)).to(self.weight.device)
        return float((self.predict(features) == ids).double().mean())


def linear_transfer(
    features: Tensor,
    labels: Tensor,
    *,
    l2: Iterable[float] = PENALTIES,
    holdout: float = 0.2,
    seed: int = 0,
) -> LinearTransfer:
    """Multinomial logistic regression on frozen features, L2 chosen by hold-out.

    Minimises mean cross-entropy + l2/2 ‖W‖_F², the bias unpenalised (scikit-learn's
    C = 1/(l2 rows)), by L-BFGS in float64: for each penalty on 1 − holdout of the rows, then with
    the one that is best on the held-out rows (the larger on ties) on all of them. Features are
    taken as they are: scale or centre them before, if need be.

    Args:
        features: [rows, N].
        labels: integers [rows], from 0; every class up to the largest has a row of the weight.
        l2: penalties to try, > 0; with one of them nothing is held out.
        holdout: the fraction of rows that choose, in (0, 1).
        seed: of the split.
    """
    x = checks.matrix("features", features)
    ids = checks.labels("labels", labels, len(x)).to(x.device)
    penalties = sorted({float(value) for value in l2}, reverse=True)
    if not penalties or not all(0 < p < float("inf") for p in penalties):
        raise ValueError(f"l2 must hold positive numbers, got {penalties}")
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must lie between 0 and 1, got {holdout}")
    if len(x) < 2 or int(ids.min()) == int(ids.max()):
        raise ValueError("labels must hold at least 2 classes")
    classes, found = int(ids.max()) + 1, {}
    if len(penalties) > 1:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        held = order[: min(len(x) - 1, max(1, round(holdout * len(x))))]
        rest = order[len(held) :]
        start = None
        for penalty in penalties:
            start = _fit(x[rest], ids[rest], classes, penalty, start)
            found[penalty] = float(
                ((x[held] @ start[0].T + start[1]).argmax(1) == ids[held]).double().mean()
            )
    best = max(penalties, key=lambda p: (found.get(p, 0.0), p))
    weight, bias = _fit(x, ids, classes, best, None)
    return LinearTransfer(best, weight, bias, found)


def _fit(
    x: Tensor, ids: Tensor, classes: int, l2: float, start: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    if start is None:
        start = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    weight, bias = (value.clone().requires_grad_() for value in start)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, ids)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
