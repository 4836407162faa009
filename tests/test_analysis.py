"""Measures of representations against brute force over pairs and tuples, and scikit-learn."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from fixclf_infer import analysis
from fixclf_infer.analysis import alignment
from fixclf_infer.analysis import rows as rows_module
from fixclf_infer.analysis import transfer as transfer_module
from fixclf_infer.codebooks import codebook
from fixclf_infer.nn import FixedClassifier


def clusters(rows: int = 90, n: int = 8, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around class means, and labels; classes of different sizes, in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[labels == 1] = torch.where(torch.arange(int((labels == 1).sum())) % 2 == 0, 1, 0)
    means = torch.randn(classes, n, generator=torch.Generator().manual_seed(99))
    return means[labels] + 0.8 * torch.randn(rows, n, generator=generator), labels


# Class separation.


def separation_by_pairs(features: Tensor, labels: Tensor) -> float:
    """Equation 11, pair by pair."""
    x = [row / np.linalg.norm(row) for row in features.double().numpy()]
    groups = [[x[i] for i in np.flatnonzero(labels.numpy() == k)] for k in labels.unique().tolist()]
    k = len(groups)
    within = sum(sum(1 - a @ b for a in g for b in g) / (k * len(g) ** 2) for g in groups)
    total = sum(
        sum(1 - a @ b for a in g for b in h) / (k**2 * len(g) * len(h))
        for g in groups
        for h in groups
    )
    return 1 - within / total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_class_separation(dtype: torch.dtype) -> None:
    features, labels = clusters()
    features = (features * torch.rand(len(features), 1) * 100).to(dtype)
    want = separation_by_pairs(features, labels)
    assert 0.1 < want < 0.9
    assert analysis.class_separation(features, labels) == pytest.approx(want, abs=1e-12)
    streamed = analysis.ClassSeparation(7)  # three classes have no examples
    for part, ids in zip(features.split(17), labels.split(17), strict=True):
        streamed.update(part, ids)
    assert streamed.compute() == pytest.approx(want, abs=1e-12)


def test_class_separation_of_extremes() -> None:
    axes = torch.eye(3).repeat(4, 1)
    labels = torch.arange(3).repeat(4)
    assert analysis.class_separation(axes, labels) == pytest.approx(1)
    assert analysis.class_separation(axes, torch.arange(12) // 3) == pytest.approx(0)


# CKA.


def test_cka_is_its_formula_either_way() -> None:
    x, _ = clusters(30, 6)
    y = torch.relu(x @ torch.randn(6, 9)) + 3
    centred = [m.double().numpy() - m.double().numpy().mean(0) for m in (x, y)]
    k, ell = (m @ m.T for m in centred)
    want = np.sum(k * ell) / np.sqrt(np.sum(k * k) * np.sum(ell * ell))
    assert analysis.cka(x, y) == pytest.approx(want, abs=1e-12)
    few = analysis.cka(x[:5], y[:5])  # fewer rows than features
    centred = [m.double().numpy()[:5] - m.double().numpy()[:5].mean(0) for m in (x, y)]
    cross = np.linalg.norm(centred[1].T @ centred[0]) ** 2
    want = cross / np.prod([np.linalg.norm(m.T @ m) for m in centred])
    assert few == pytest.approx(want, abs=1e-12)
    q, _ = torch.linalg.qr(torch.randn(6, 6))
    assert analysis.cka(x, 3 * x @ q + 1) == pytest.approx(1, abs=1e-6)
    assert analysis.cka(x, torch.ones(30, 2)) == 0


def test_hsic_is_unbiased_by_definition() -> None:
    """The mean over all 4-tuples of different rows of K_ij (L_ij + L_qr − 2 L_iq)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 3)), rng.standard_normal((7, 5))
    k, ell = a @ a.T, b @ b.T
    terms = [
        k[i, j] * (ell[i, j] + ell[q, r] - 2 * ell[i, q])
        for i, j, q, r in itertools.permutations(range(7), 4)
    ]
    got = alignment.hsic(torch.from_numpy(k), torch.from_numpy(ell))
    assert got == pytest.approx(np.mean(terms), abs=1e-12)


def test_minibatch_cka() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4096, 6, generator=generator)
    noise = 2 * torch.randn(4096, 6, generator=generator)
    y = torch.cat([x[:, :3] @ torch.randn(3, 4, generator=generator), noise], 1)
    sums, scores = np.zeros(3), analysis.MinibatchCKA()
    for a, b in zip(x.split(8), y.split(8), strict=True):
        scores.update(a, b)
        k, ell = (m.double() @ m.double().T for m in (a, b))
        sums += [alignment.hsic(*pair) for pair in ((k, ell), (k, k), (ell, ell))]
    assert scores.compute() == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-9)
    # Batches of 8 estimate what all rows give; the biased CKA of 8 rows is far off.
    whole = analysis.cka(x, y)
    assert scores.compute() == pytest.approx(whole, abs=0.04)
    biased = [analysis.cka(a, b) for a, b in zip(x.split(8), y.split(8), strict=True)]
    assert np.mean(biased) > whole + 0.1


# Sparsity.


def test_sparsity() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].bias[4] = -1e9  # a dead unit
    batches = torch.randn(50, 6).split(16)
    with analysis.record_sparsity(model, ["1", "2"]) as found:
        for batch in batches:
            model(batch)
    active = (model[:2](torch.cat(batches)) > 0).double().numpy()
    assert found["1"].zeros == pytest.approx(1 - active.mean())
    assert found["1"].dead == np.mean(active.sum(0) == 0) >= 1 / 12
    assert found["2"].zeros == 0 and found["2"].rows == 50
    model(batches[0])
    assert found["1"].rows == 50  # the hooks are gone
    assert math.isnan(analysis.Sparsity().zeros)


# Transfer.


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_neighbours_as_scikit_learn(metric: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "CHUNK", 500)
    gallery, labels = clusters(80)
    queries, truth = clusters(60, seed=5)
    gallery = gallery + 10  # far from the origin
    queries = queries + 10
    got = analysis.knn_predict(queries, gallery, labels, k=k, metric=metric)
    theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute")
    theirs.fit(gallery.double().numpy(), labels.numpy())
    np.testing.assert_array_equal(got.numpy(), theirs.predict(queries.double().numpy()))
    assert 0.4 < float((got == truth).double().mean()) < 1


@pytest.mark.parametrize("l2", [1e-3, 1e-1, 10.0])
def test_logistic_regression_as_scikit_learn(l2: float) -> None:
    x, labels = clusters(120)
    ours = analysis.linear_transfer(x, labels, l2=[l2])
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, solver="newton-cholesky")
    theirs.fit(x.double().numpy(), labels.numpy())
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=1e-5)
    bias = ours.bias.numpy() - ours.bias.numpy().mean()  # only differences count
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-5)
    queries, truth = clusters(60, seed=5)
    accuracy = theirs.score(queries.double().numpy(), truth.numpy())
    assert ours.accuracy(queries, truth) == pytest.approx(accuracy)
    assert ours.holdout == {}


def test_the_penalty_is_chosen_by_hold_out() -> None:
    """Against scikit-learn on the same split: which accuracy each penalty has, and the choice."""
    x, labels = clusters(100, n=40)
    penalties = [1e-5, 1e-3, 1e-1, 10.0, 1000.0]
    found = analysis.linear_transfer(x, labels, l2=penalties, holdout=0.3, seed=4)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(4))
    held, rest = order[:30], order[30:]
    accuracies = {}
    for l2 in penalties:
        theirs = LogisticRegression(C=1 / (l2 * 70), tol=1e-10, solver="newton-cholesky")
        theirs.fit(x[rest].double().numpy(), labels[rest].numpy())
        accuracies[l2] = theirs.score(x[held].double().numpy(), labels[held].numpy())
    assert found.holdout == pytest.approx(accuracies)
    assert found.l2 == max(penalties, key=lambda p: (accuracies[p], p))
    assert len(set(accuracies.values())) > 1
    alone = analysis.linear_transfer(x, labels, l2=[found.l2])
    torch.testing.assert_close(found.weight, alone.weight)


# Compatibility.


def test_compatibility() -> None:
    old_gallery, gallery_labels = clusters(70)
    old_queries, labels = clusters(50, seed=3)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    new_gallery, new_queries = (
        torch.cat([x[:, :4] @ rotation[:4], x[:, 4:6]], 1)[:, :8]
        for x in (old_gallery, old_queries)
    )

    def by_hand(gallery: Tensor, queries: Tensor) -> float:
        hits = 0
        for query, label in zip(queries.double().numpy(), labels.tolist(), strict=True):
            cosines = [
                query @ row / np.linalg.norm(query) / np.linalg.norm(row)
                for row in gallery.double().numpy()
            ]
            hits += int(gallery_labels[int(np.argmax(cosines))]) == label
        return hits / len(queries)

    found = analysis.compatibility(
        old_gallery,
        gallery_labels,
        new_queries,
        labels,
        old_queries=old_queries,
        new_gallery=new_gallery,
    )
    assert found.cross == pytest.approx(by_hand(old_gallery, new_queries))
    assert found.old == pytest.approx(by_hand(old_gallery, old_queries))
    assert found.new == pytest.approx(by_hand(new_gallery, new_queries))
    assert found.cross < 0.6 < found.new and found.compatible is False
    same = analysis.compatibility(old_gallery, gallery_labels, old_queries, labels)
    assert (same.cross, same.old, same.compatible) == (found.old, None, None)


# Curves.


def test_head_curves(tmp_path: Path) -> None:
    model = nn.ModuleDict({"head": FixedClassifier(16, 5, alpha=7.0), "dense": nn.Linear(16, 5)})
    curves = analysis.HeadCurves(model, ["head", "dense"])
    curves.record(0)
    with torch.no_grad():
        model["head"].alpha = 14.0
        model["head"].bias.copy_(torch.tensor([3.0, 4, 0, 0, 0]))
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    curves.record(10, features)
    dense = model["dense"]
    norm = np.mean([np.linalg.norm(row) for row in dense.weight.detach().numpy()])
    assert [r["alpha"] for r in curves.rows] == pytest.approx([7, norm, 14, norm])
    assert [r["step"] for r in curves.rows] == [0, 0, 10, 10]
    assert curves.rows[2]["bias_norm"] == 5 and curves.rows[2]["feature_norm"] == 3
    assert curves.rows[1]["bias_norm"] == pytest.approx(np.linalg.norm(dense.bias.detach().numpy()))
    curves.save(tmp_path / "curves.csv")
    with open(tmp_path / "curves.csv") as file:
        read = list(csv.DictReader(file))
    assert [row["head"] for row in read] == ["head", "dense"] * 2
    assert float(read[2]["alpha"]) == 14 and read[0]["feature_norm"] == ""
    assert list(analysis.HeadCurves(model).heads) == ["head"]


# Rows.


@pytest.mark.parametrize("chunk", [2**24, 100])
def test_coherence_of_rows(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", chunk)
    weight = torch.randn(37, 6, generator=torch.Generator().manual_seed(1))
    weight[20] = -4 * weight[3]
    unit = weight.double().numpy() / np.linalg.norm(weight.double().numpy(), axis=1, keepdims=True)
    gram = unit @ unit.T
    upper = np.where(np.triu(np.ones_like(gram), 1) > 0, gram, -2)
    found = analysis.coherence(weight)
    assert found.largest_cosine == pytest.approx(upper.max())
    assert found.pair == np.unravel_index(upper.argmax(), gram.shape)
    assert found.coherence == pytest.approx(1)
    book = codebook(60, 100)
    assert analysis.coherence(torch.from_numpy(book.matrix())[:60]).coherence == pytest.approx(
        book.report().coherence or 0, abs=1e-12
    )


@pytest.mark.parametrize("chunk", [2**24, 60])
def test_twins(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are connected components: here a chain whose ends are no twins of each other."""
    monkeypatch.setattr(rows_module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 16, generator=generator)
    for row in (7, 12, 39):  # untrained: one direction, other norms
        weight[row] = 0.1 * row * weight[2] + 1e-3 * torch.randn(16, generator=generator)
    step = torch.randn(16, generator=generator)
    for i, row in enumerate((30, 5, 21, 9)):
        weight[row] = weight[30] + 0.035 * i * step
    unit = weight.double().numpy() / np.linalg.norm(weight.double().numpy(), axis=1, keepdims=True)
    near = (unit @ unit.T >= 0.999) & ~np.eye(40, dtype=bool)
    assert not near[30, 9]
    reach = np.linalg.matrix_power(near.astype(float) + np.eye(40), 40) > 0
    want = sorted({tuple(np.flatnonzero(reach[i])) for i in range(40) if near[i].any()})
    found = analysis.twins(weight)
    assert [tuple(group) for group in found.groups] == want == [(2, 7, 12, 39), (5, 9, 21, 30)]
    assert found.pairs == near.sum() // 2
    assert found.classes.tolist() == np.flatnonzero(near.any(1)).tolist()
    assert found.redundant == 6
    none = analysis.twins(weight, 1.0)
    assert (none.pairs, none.groups, none.redundant) == (0, [], 0)


# Bad input.

X, Y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
BAD = {
    "labels of another length": (
        lambda: analysis.class_separation(X, Y[:5]),
        r"labels has shape \[5\], expected \[6\]",
    ),
    "a negative label": (
        lambda: analysis.class_separation(X, Y - 1),
        "labels must be classes from 0, got -1 to 1",
    ),
    "a label beyond": (
        lambda: analysis.ClassSeparation(2).update(X, Y),
        "labels must be classes from 0 below 2, got 0 to 2",
    ),
    "one class": (
        lambda: analysis.class_separation(X, 0 * Y),
        "at least 2 classes must have examples, got 1",
    ),
    "no class": (lambda: analysis.ClassSeparation(1), "num_classes must be at least 2, got 1"),
    "one direction": (
        lambda: analysis.class_separation(torch.ones(6, 3), Y),
        "features must not all have one direction",
    ),
    "NaN": (lambda: analysis.cka(X * math.nan, X), "x holds values that are not finite"),
    "a vector": (lambda: analysis.cka(X[0], X), r"x has shape \[3\], expected \[rows, features\]"),
    "other rows": (lambda: analysis.cka(X, X[:4]), "x and y must have the same rows"),
    "a small batch": (
        lambda: analysis.MinibatchCKA().update(X[:3], X[:3]),
        "x must have at least 4 rows, got 3",
    ),
    "no batch": (lambda: analysis.MinibatchCKA().compute(), "must vary over the batches, got 0"),
    "a metric": (
        lambda: analysis.knn_predict(X, X, Y, metric="dot"),
        "metric must be 'cosine' or 'euclidean', got 'dot'",
    ),
    "too many neighbours": (
        lambda: analysis.knn_predict(X, X, Y, k=7),
        r"k must lie in \[1, 6\], the rows of the gallery, got 7",
    ),
    "other features": (
        lambda: analysis.knn_predict(X, X[:, :2], Y),
        "queries and gallery must have the same features, got 3 and 2",
    ),
    "no penalty": (
        lambda: analysis.linear_transfer(X, Y, l2=[0.0]),
        r"l2 must hold positive numbers, got \[0\.0\]",
    ),
    "all held out": (
        lambda: analysis.linear_transfer(X, Y, holdout=1.0),
        "holdout must lie between 0 and 1, got 1.0",
    ),
    "one label": (
        lambda: analysis.linear_transfer(X, 0 * Y),
        "labels must hold at least 2 classes",
    ),
    "a threshold": (lambda: analysis.twins(X, 1.5), r"threshold must lie in \(0, 1\], got 1\.5"),
    "a row of zeros": (
        lambda: analysis.coherence(torch.eye(3)[:, :2]),
        "weight must have no row of zeros, got row 2",
    ),
    "one row": (lambda: analysis.coherence(X[:1]), "weight must have at least 2 rows, got 1"),
    "a model without heads": (
        lambda: analysis.HeadCurves(nn.Linear(2, 2)),
        "model must have a FixedClassifier, or names must name a head",
    ),
    "a name": (
        lambda: analysis.HeadCurves(nn.ReLU(), ["fc"]),
        "names must be FixedClassifier or Linear modules, got 'fc', nothing",
    ),
    "a module's name": (
        lambda: analysis.record_sparsity(nn.ReLU(), ["fc"]).__enter__(),
        "names must be modules of the model, got 'fc'",
    ),
    "activations": (
        lambda: analysis.Sparsity().update(X[0]),
        r"activations has 1 dimension\(s\), expected \[rows, …\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_are_integers() -> None:
    with pytest.raises(TypeError, match=r"labels must be integers, got torch\.float32"):
        analysis.class_separation(X, Y.float())
