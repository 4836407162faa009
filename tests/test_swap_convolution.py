"""FixedClassifier2d against the head at each position, in float64, and by its own gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fixclf_infer import reference
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier, FixedClassifier2d

KINDS = {
    "masks": (16, 100, "kerdock"),
    "base": (24, 10, "hadamard"),
    "dense": (16, 9, "orthonormal"),
}
kinds = pytest.mark.parametrize("kind", KINDS)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def make(kind: str) -> tuple[FixedClassifier2d, FixedClassifier]:
    """The same head for feature maps and for rows."""
    torch.manual_seed(3)
    n, c, family = KINDS[kind]
    head = FixedClassifier2d(n, c, codebook=family, alpha=5.0)
    with torch.no_grad():
        head.bias.normal_()
    rows = FixedClassifier(n, c, codebook=family)
    rows.load_state_dict(head.state_dict())
    return head, rows


def maps(kind: str, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(2, KINDS[kind][0], 3, 5).contiguous(memory_format=layout)


@kinds
@layouts
@pytest.mark.parametrize(
    "method", ["forward", "predict_proba", "predict_log_proba"], ids=["logits", "softmax", "log"]
)
def test_against_float64(kind: str, layout: torch.memory_format, method: str) -> None:
    head, _ = make(kind)
    x = maps(kind, layout)
    with torch.no_grad():
        z = getattr(head, method)(x)
        one = getattr(head, method)(x[1])
    epilogue = {
        "forward": Epilogue.LOGITS,
        "predict_proba": Epilogue.SOFTMAX,
        "predict_log_proba": Epilogue.LOG_SOFTMAX,
    }[method]
    assert z.shape == (2, head.num_classes, 3, 5)
    for b, h, w in np.ndindex(2, 3, 5):
        want = reference.head(
            x[b, :, h, w][None].numpy(),
            np.asarray(head.codebook.matrix()),
            5.0,
            head.bias.detach().numpy(),
            epilogue,
        )[0]
        np.testing.assert_allclose(z[b, :, h, w].numpy(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(one, z[1])


@kinds
@layouts
def test_answers_without_logits(kind: str, layout: torch.memory_format) -> None:
    head, rows = make(kind)
    x = maps(kind, layout)
    flat = x.permute(0, 2, 3, 1).reshape(-1, head.in_features)
    allowed = torch.rand(2, head.num_classes, 3, 5) < 0.7
    allowed[:, 0] = True
    flat_allowed = allowed.permute(0, 2, 3, 1).reshape(-1, head.num_classes)
    one = allowed[0, :, 0, 0]
    for mask, flat_mask in ((None, None), (allowed, flat_allowed), (one, one)):
        got = head.topk(x, 3, allowed=mask)
        want = rows.topk(flat, 3, allowed=flat_mask)
        # Dense products differ by the batch's layout.
        close = {"atol": 1e-5 if kind == "dense" else 0, "rtol": 0}
        for mine, theirs in zip(got[:2], want[:2], strict=True):
            torch.testing.assert_close(mine.permute(0, 2, 3, 1).reshape(-1, 3), theirs, **close)
        torch.testing.assert_close(got[2].flatten(), want[2], **close)
        best = head.argmax(x, allowed=mask)
        assert best.shape == (2, 3, 5)
        assert torch.equal(best.flatten(), rows.argmax(flat, allowed=flat_mask))
        assert torch.equal(best, got[1][:, 0])
        ids = torch.zeros(2, 3, 5, dtype=torch.int64)
        mine = head.log_prob(x, ids, allowed=mask)
        theirs = rows.log_prob(flat, ids.flatten(), allowed=flat_mask)
        torch.testing.assert_close(mine.flatten(), theirs, **close)
    many = torch.randint(head.num_classes, (2, 4, 3, 5))
    logs = head.predict_log_proba(x)
    torch.testing.assert_close(head.log_prob(x, many), logs.gather(1, many), atol=1e-5, rtol=0)
    drawn = torch.stack([head.sample(x, allowed=allowed) for _ in range(20)], 1)
    assert allowed.gather(1, drawn).all()
    again = [head.sample(x, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*again)


@kinds
@layouts
def test_loss_and_gradients(kind: str, layout: torch.memory_format) -> None:
    head, _ = make(kind)
    x = maps(kind, layout).requires_grad_()
    target = torch.randint(head.num_classes, (2, 3, 5))
    target[0, 0, 0] = -100
    results = []
    for loss in (
        head.loss(x, target, label_smoothing=0.1),
        nn.functional.cross_entropy(head(x), target, label_smoothing=0.1),
    ):
        results.append((loss.detach(), *torch.autograd.grad(loss, [x, *head.parameters()])))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    each = head.loss(x, target, "none")
    assert each.shape == target.shape and each[0, 0, 0] == 0


def test_gradients_in_float64() -> None:
    head = FixedClassifier2d(8, 20, alpha=3.0, dtype=torch.float64)
    x = torch.randn(2, 8, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (x,))


def test_bad_shapes() -> None:
    head = FixedClassifier2d(8, 5)
    for shape in ((8,), (2, 8), (1, 2, 8, 3, 3)):
        with pytest.raises(ValueError, match=r"x has shape .*, expected \[B, N, H, W\]"):
            head(torch.randn(shape))
    with pytest.raises(ValueError, match="8"):
        head(torch.randn(2, 7, 3, 3))


def test_traced_compiled_and_exported() -> None:
    head, _ = make("masks")
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), head).eval(), torch.randn(2, 3, 4, 4)
    want = model(x)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    more = torch.randn(5, 3, 4, 4)
    for run in (exported, compiled):
        torch.testing.assert_close(run(more), model(more))
