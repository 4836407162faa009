"""The torch operators on every device of this machine, against the oracle: what the case lists of
test_head.py and test_reductions.py, which run on every device too, leave out."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
import torch
from backends import codebook_on, to_numpy, to_torch
from cases import DTYPES, NUMPY_DTYPES, Case, expand, synthetic

from fixclf_infer import hadamard_transform, ops, reference
from fixclf_infer.nn import FixedClassifier

BOOKS = {
    "one block": synthetic(60, 61, log2=6),
    "folded": synthetic(2000, 100, log2=11),
    "masked and negated": synthetic(30, 1500, log2=5, blocks=30, negate=True),
    "base matrix and masks": synthetic(24, 60, log2=1, base_order=12, blocks=3),
    "centred": synthetic(64, 33, log2=6, center=True),
}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)
# CUDA's largest order is below the CPU's.
ORDERS = (1, 2, 5, 6, 8, 10, 11, 13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log2", ORDERS)
def test_transform(device: str, log2: int, dtype: str) -> None:
    x = np.random.default_rng(log2).standard_normal((5, 1 << log2)).astype(NUMPY_DTYPES[dtype])
    got = to_numpy(hadamard_transform(to_torch(x).to(device), 0.5))
    want = 0.5 * (x.astype(np.float64) @ reference.hadamard_matrix(1 << log2))
    bound = tolerances.transform(want, log2, dtype)
    tolerances.assert_norm_within(f"transform {dtype}", got, want, bound)


@books
def test_gradients(device: str, book) -> None:
    """Of the loss and of the logits, as dense logits in float64 have them."""
    rng = np.random.default_rng(3)
    head = FixedClassifier(book.in_features, book.num_classes, codebook=book).to(device)
    dense = torch.from_numpy(expand(book))
    x = torch.from_numpy(rng.standard_normal((19, book.in_features)))
    target = torch.from_numpy(rng.integers(0, book.num_classes, 19))
    x32, x64 = x.float().to(device).requires_grad_(), x.clone().requires_grad_()
    alpha = head.alpha.detach().double().cpu().requires_grad_()
    bias = torch.zeros(book.num_classes, dtype=torch.float64, requires_grad=True)
    unit = torch.nn.functional.normalize(x64, dim=-1)
    z = alpha / book.in_features**0.5 * unit @ dense.T + bias
    for smoothing in (0.0, 0.1):
        for leaf in (x32, x64, alpha, bias, head.alpha_spread, head.bias):
            leaf.grad = None
        loss = head.loss(x32, target.to(device), label_smoothing=smoothing)
        loss = loss + head(x32).square().mean()
        loss.backward()
        want = torch.nn.functional.cross_entropy(z, target, label_smoothing=smoothing)
        (want + z.square().mean()).backward(retain_graph=True)
        assert float(loss.detach()) == pytest.approx(
            float((want + z.square().mean()).detach()), rel=1e-5
        )
        # α = Σ s / 8: each of the 64 numbers has an eighth of α's gradient.
        pairs = ((x32, x64.grad), (head.alpha_spread, alpha.grad / 8), (head.bias, bias.grad))
        for got, expected in pairs:
            wide = expected.expand_as(got)
            np.testing.assert_allclose(got.grad.double().cpu(), wide, rtol=1e-3, atol=2e-6)


@books
def test_rows_do_not_depend_on_the_batch(device: str, book) -> None:
    x = torch.randn(37, book.in_features, generator=torch.Generator().manual_seed(1)).to(device)
    one = torch.ones((), device=device)
    arguments = codebook_on(device, book)
    k = min(5, book.num_classes)
    for run in (
        lambda rows: ops.head(rows, one, None, arguments, epilogue=ops.Epilogue.SOFTMAX),
        lambda rows: ops.head_topk(rows, one, None, arguments, k)[0],
        lambda rows: ops.head_topk(rows, one, None, arguments, k)[2],
    ):
        whole = run(x)
        for row in (0, 17, 36):
            assert torch.equal(run(x[row : row + 1])[0], whole[row])


def test_a_head_moves_with_its_module() -> None:
    head = FixedClassifier(100, 1000).to("meta")
    assert {t.device.type for t in (*head.parameters(), *head.buffers())} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCuda:
    def test_graph(self) -> None:
        case = Case(2048, 1000, 1)
        x = to_torch(case.features()).cuda()
        head = FixedClassifier(2048, 1000, codebook=case.codebook).cuda()
        many = FixedClassifier(64, 5000).cuda()
        y = torch.randn(3, 64, device="cuda")
        with torch.no_grad():
            want = head.predict_proba(x), *many.topk(y, 5)
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                head.predict_proba(x), many.topk(y, 5)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                got = head.predict_proba(x), *many.topk(y, 5)
            graph.replay()
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)

    def test_compiled_with_graphs(self) -> None:
        head = FixedClassifier(512, 1000).cuda()
        x = torch.randn(4, 512, device="cuda")
        compiled = torch.compile(head, mode="reduce-overhead", fullgraph=True)
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(compiled(x), head(x))

    def test_order_over_the_limit(self) -> None:
        with pytest.raises((ValueError, RuntimeError), match="32768"):
            hadamard_transform(torch.zeros(1, 1 << 16, device="cuda"))

    def test_devices_must_agree(self) -> None:
        book = BOOKS["one block"]
        x, alpha = torch.zeros(2, 60, device="cuda"), torch.ones(())
        with pytest.raises((ValueError, RuntimeError), match="alpha is not on"):
            ops.head(x, alpha, None, codebook_on("cuda", book))

    def test_out_of_range_ids_give_nan(self) -> None:
        book = BOOKS["one block"]
        x, one = torch.randn(2, 60, device="cuda"), torch.ones((), device="cuda")
        ids = torch.tensor([61, 3], device="cuda")
        log_probs, _, _ = ops.head_log_prob(x, one, None, codebook_on("cuda", book), ids)
        assert log_probs.isnan().tolist() == [True, False]
