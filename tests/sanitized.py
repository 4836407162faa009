"""A short walk through every CUDA kernel, for compute-sanitizer (`make test-gpu`): odd batches, odd
widths, every dtype, one block and many."""

from __future__ import annotations

import torch

from fixclf_infer import hadamard_transform, ops
from fixclf_infer.nn import FixedClassifier


def main(device: str) -> None:
    torch.manual_seed(0)
    for batch in (1, 3, 7):
        for log2 in (0, 4, 6, 11):
            hadamard_transform(torch.randn(batch, 1 << log2, device=device))
        for n, c in ((20, 12), (33, 35), (64, 5000), (384, 100), (2048, 1000)):
            head = FixedClassifier(n, c).to(device)
            x = torch.randn(batch, n, device=device)
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                head.predict_proba(x.to(dtype))
            head.topk((x * 20).to(torch.int8), min(c, 9))
            head.topk(ops.pack_signs(x), min(c, 1024))
            target = torch.randint(c, (batch,), device=device)
            head.log_prob(x, target)
            head.argmax(x)
            head.sample(x)
            leaf = x.clone().requires_grad_()
            head.loss(leaf, target).backward()
            head(leaf).sum().backward()


if __name__ == "__main__":
    main("cuda" if torch.cuda.is_available() else "cpu")
