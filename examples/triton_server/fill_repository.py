"""Writes the model and the operator library into a model repository for NVIDIA Triton server.

python fill_repository.py [repository]        (default: models, beside this file)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from fixclf_infer.nn import FixedClassifier
from fixclf_infer.onnx import export, library_path

HERE = Path(__file__).parent


def fill(repository: Path) -> None:
    folder = repository / "fixed_head"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    export(
        FixedClassifier(2048, 1000),
        torch.zeros(2, 2048),
        folder / "1" / "model.onnx",
        outputs="topk",
        k=5,
        input_names=["features"],
        output_names=["classes"],
    )
    shutil.copy(library_path(), folder)
    if repository != HERE / "models":
        shutil.copy(HERE / "models" / "fixed_head" / "config.pbtxt", folder)


if __name__ == "__main__":
    fill(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "models")
