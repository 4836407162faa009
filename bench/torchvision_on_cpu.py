"""Import this before torchvision, or what imports it (timm, transformers): PyPI's torchvision is
built for CUDA, and beside a CPU build of torch its import fails for want of two operators that
nothing here calls. Declaring them is enough."""

import importlib.util

import torch

if importlib.util.find_spec("torchvision") and not torch.version.cuda:
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for _name in ("nms", "qnms"):
        _schema = f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _library.define(_schema)  # type: ignore[no-untyped-call]
