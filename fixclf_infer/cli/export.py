"""`fixclf export`: a head alone, or a model of the user's, as ONNX; or a head for a device."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app, one_line_errors


@app.command()
def export(
    source: Annotated[
        list[str],
        typer.Argument(
            help="N C: a new head alone; or package.module:factory, which returns a model and its "
            "example inputs.",
            metavar="N C | MODULE:FACTORY",
        ),
    ],
    path: Annotated[
        Path,
        typer.Argument(
            help="The file to write: ONNX, or .npz: the one head of the model, for "
            "fixclf_infer.edge; the options from --outputs on are ONNX's."
        ),
    ],
    kind: Annotated[str, typer.Option(help="Of a head alone: a family, or auto.")] = "auto",
    outputs: Annotated[str, typer.Option(help="logits, softmax or topk.")] = "logits",
    k: Annotated[int | None, typer.Option(help="How many, for topk.")] = None,
    portable: Annotated[
        bool, typer.Option(help="Let the file run without the library of operators too.")
    ] = True,
    opset: Annotated[int, typer.Option(help="Of the standard operators, 18 to 23.")] = 18,
) -> None:
    """Write a model with fixed heads as ONNX, or its head for a device."""
    with one_line_errors():
        if len(source) == 2:
            import torch

            from ..nn import FixedClassifier

            n, c = (_integer(name, text) for name, text in zip("NC", source, strict=True))
            built: tuple[Any, Any] = FixedClassifier(n, c, codebook=kind), torch.zeros(2, n)
        else:
            built = _build(source)
        if path.suffix == ".npz":
            _save(built[0], path, outputs)
        else:
            from ..onnx import export as run

            run(
                *built,
                path,
                outputs=outputs,  # type: ignore[arg-type]  # export checks it
                k=k,
                portable=portable,
                opset=opset,
            )
    typer.echo(f"wrote {path}")


def _save(model: Any, path: Path, outputs: str) -> None:
    from ..edge import FixedHead
    from ..nn import FixedClassifier

    if outputs != "logits":
        raise ValueError(
            f"outputs is {outputs!r}, but an .npz file holds a head with all of its outputs; "
            "leave the option out"
        )
    heads = [m for m in model.modules() if isinstance(m, FixedClassifier)]
    if len(heads) != 1:
        raise ValueError(f"the model has {len(heads)} FixedClassifiers, expected one for {path}")
    FixedHead.from_module(heads[0]).save(path)


def _integer(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}, expected an integer")
    return int(text)


def _build(source: list[str]) -> tuple[Any, Any]:
    module, _, factory = source[0].partition(":")
    if len(source) != 1 or not factory:
        raise ValueError(f"the source is {' '.join(source)!r}, expected N C or MODULE:FACTORY")
    sys.path.insert(0, "")  # as `python -m` finds modules
    make = getattr(importlib.import_module(module), factory, None)
    if make is None:
        raise ValueError(f"{module} has no factory {factory!r}")
    built = make()
    if not isinstance(built, tuple) or len(built) != 2:
        raise ValueError(f"{source[0]} returned no pair of a model and its example inputs")
    return built
