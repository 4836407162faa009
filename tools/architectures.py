"""Writes docs/architectures.md: `replace_head` on named architectures, with checks of each.

    python tools/architectures.py              # all of them, about a quarter of an hour
    python tools/architectures.py bert vit     # the rows whose names have one of these words

Weights are random, images as small as an architecture takes them; heads have their usual sizes.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, it has only its own folder

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench import tables, torchvision_on_cpu  # noqa: E402, F401
from fixclf_infer import reference, replace_head  # noqa: E402
from fixclf_infer.epilogue import Epilogue  # noqa: E402
from fixclf_infer.nn import FixedClassifier2d  # noqa: E402
from fixclf_infer.swap import Replacement  # noqa: E402

TABLE = ROOT / "docs" / "architectures.md"
HEADER = """# Architectures

What [`replace_head`](training.md) does to {count} architectures of timm {timm}, torchvision
{torchvision} and transformers {transformers}, with random weights; `python tools/architectures.py`
writes this table. `params` are those that leave the model with the old head and those of the new
one; `share` is what the first are of the whole model. A head whose weight is tied to the input
embeddings leaves its weight there.

Checked of every row, on the CPU: **forward**, the logits against the dense product in float64;
**backward**, gradients of the head and of the body; **export**, `torch.export`, and **compile**,
`torch.compile(fullgraph=True)`, the same logits as before; **files**, `torch.save` and `torch.load`
with `weights_only=True`, or `save_pretrained` and `from_pretrained`, the same logits again.

"""


@dataclass(frozen=True)
class Architecture:
    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]] = field(repr=False)


def _images(name: str, size: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(2, 3, size, size)}


def _tokens(*names: str) -> Callable[[], dict[str, Tensor]]:
    """Ends with token 2, which is where BART's classifier looks."""

    def make() -> dict[str, Tensor]:
        ids = torch.randint(5, 500, (2, 12))
        ids[:, -1] = 2
        return dict.fromkeys(names or ("input_ids",), ids)

    return make


def _timm(name: str, size: int = 64, **options: Any) -> Architecture:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, **options)

    return Architecture("timm", name, make, _images("x", size))


def _torchvision(name: str, size: int = 64, **options: Any) -> Architecture:
    def make() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None, **options)

    return Architecture("torchvision", name, make, _images("x", size))


def _transformers(
    model: str, config: str, inputs: Callable[[], dict[str, Tensor]], note: str = "", **options: Any
) -> Architecture:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return Architecture("transformers", f"{model}{note}", make, inputs)


def _sound() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 8000)}


_IMAGE = _images("pixel_values", 64)
_GPT2 = {"pad_token_id": 0}
_SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
_PYTHIA = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 50304,
}
_BART = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
}

ARCHITECTURES = (
    _timm("resnet50"),
    _timm("resnetv2_50x1_bit"),
    _timm("efficientnet_b0"),
    _timm("mobilenetv3_small_050"),
    _timm("mobilenetv4_conv_small"),
    _timm("ghostnet_100"),
    _timm("regnety_002"),
    _timm("dla34"),
    _timm("dpn68"),
    _timm("convnext_atto"),
    _timm("convmixer_768_32"),
    _timm("vgg11_bn"),
    _timm("densenet121"),
    _timm("vit_tiny_patch16_224", img_size=64),
    _timm("deit_small_patch16_224", img_size=64),
    _timm("eva02_tiny_patch14_224", size=56, img_size=56, num_classes=1000),
    _timm("swin_tiny_patch4_window7_224", img_size=224, size=224),
    _timm("mixer_s16_224", size=224),
    _timm("xcit_nano_12_p16_224"),
    _timm("shvit_s1", size=128),
    _timm("fastvit_t8", size=128),
    _torchvision("alexnet"),
    _torchvision("vgg11"),
    _torchvision("squeezenet1_1"),
    _torchvision("resnet18"),
    _torchvision("googlenet", aux_logits=False, init_weights=False),
    _torchvision("densenet121"),
    _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_small"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("mnasnet0_5"),
    _torchvision("efficientnet_b0"),
    _torchvision("regnet_y_400mf"),
    _torchvision("convnext_tiny"),
    _torchvision("vit_b_16", image_size=64),
    _torchvision("swin_t"),
    _torchvision("maxvit_t", size=224),
    _torchvision("fcn_resnet50", weights_backbone=None),
    _transformers("BertForSequenceClassification", "BertConfig", _tokens(), num_labels=150),
    _transformers("BertForTokenClassification", "BertConfig", _tokens(), num_labels=150),
    _transformers("BertForMaskedLM", "BertConfig", _tokens()),
    _transformers("RobertaForSequenceClassification", "RobertaConfig", _tokens(), num_labels=150),
    _transformers(
        "DistilBertForSequenceClassification", "DistilBertConfig", _tokens(), num_labels=150
    ),
    _transformers("ElectraForSequenceClassification", "ElectraConfig", _tokens(), num_labels=150),
    _transformers(
        "AlbertForSequenceClassification",
        "AlbertConfig",
        _tokens(),
        " (base)",
        num_labels=150,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
    ),
    _transformers(
        "BartForSequenceClassification", "BartConfig", _tokens(), " (base)", num_labels=150, **_BART
    ),
    _transformers(
        "GPT2ForSequenceClassification", "GPT2Config", _tokens(), num_labels=150, **_GPT2
    ),
    _transformers("GPT2LMHeadModel", "GPT2Config", _tokens()),
    _transformers("GPTNeoXForCausalLM", "GPTNeoXConfig", _tokens(), " (Pythia-70M)", **_PYTHIA),
    _transformers("LlamaForCausalLM", "LlamaConfig", _tokens(), " (SmolLM2-135M)", **_SMOL),
    _transformers(
        "T5ForConditionalGeneration", "T5Config", _tokens("input_ids", "decoder_input_ids")
    ),
    _transformers("ViTForImageClassification", "ViTConfig", _IMAGE, image_size=64, num_labels=1000),
    _transformers("ConvNextForImageClassification", "ConvNextConfig", _IMAGE, num_labels=1000),
    _transformers("ResNetForImageClassification", "ResNetConfig", _IMAGE, num_labels=1000),
    _transformers(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", _IMAGE, num_labels=1000
    ),
    _transformers("SegformerForSemanticSegmentation", "SegformerConfig", _IMAGE, num_labels=150),
    _transformers("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", _sound, num_labels=150),
    _transformers("HubertForCTC", "HubertConfig", _sound),
)


class Logits(nn.Module):
    """A model that answers with a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if hasattr(model, "generate") else {}

    def forward(self, **inputs: Tensor) -> Tensor:
        answer = self.model(**inputs, **self.options)
        if isinstance(answer, dict):
            answer = answer["logits"] if "logits" in answer else answer["out"]
        logits: Tensor = answer if isinstance(answer, Tensor) else answer[0]
        return logits


def facts(architecture: Architecture, done: Replacement) -> dict[str, str]:
    """Of the head, which need no weights."""
    return {
        "library": architecture.library,
        "architecture": architecture.name,
        "head": done.path,
        "was": type(done.old_head).__name__,
        "N": str(done.head.in_features),
        "C": str(done.head.num_classes),
        "codebook": done.head.codebook.kind,
        "params": f"{done.old_parameters:,} → {done.new_parameters:,}",
        "share": f"{100 * done.old_parameters / done.model_parameters:.3g} %",
    }


def check_forward(model: Logits, done: Replacement, inputs: dict[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []
    handle = done.head.register_forward_hook(
        lambda _, x, z: seen.extend((x[0].detach().clone(), z.detach().clone()))
    )
    with torch.no_grad():
        logits = model(**inputs)
    handle.remove()
    x, z = seen
    if isinstance(done.head, FixedClassifier2d):
        x, z = x.movedim(1, -1), z.movedim(1, -1)
    # Some rows: the oracle has all classes in float64.
    x, z = (t.reshape(-1, t.shape[-1])[:8].double().numpy() for t in (x, z))
    bias = None if done.head.bias is None else done.head.bias.detach().double().numpy()
    rows = done.head.codebook.matrix()
    alpha = done.head.alpha.detach().item()
    want = reference.head(x, rows, alpha, bias, Epilogue.LOGITS)
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-4)
    return logits


def check_backward(model: Logits, done: Replacement, inputs: dict[str, Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    logits = model(**inputs)
    (logits * torch.randn_like(logits)).sum().backward()
    head = {id(p) for p in done.head.parameters()}
    gradients = [(id(p) in head, p.grad) for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for _, g in gradients)
    assert sum(of_head for of_head, _ in gradients) == len(head)
    for part in (True, False):
        assert any(of_head == part and bool(g.abs().sum() > 0) for of_head, g in gradients)
    model.zero_grad(set_to_none=True)


def check_export(model: Logits, inputs: dict[str, Tensor], want: Tensor) -> None:
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, strict=False).module()
        torch.testing.assert_close(exported(**inputs), want, atol=1e-4, rtol=1e-4)


def check_compile(model: Logits, inputs: dict[str, Tensor], want: Tensor) -> None:
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs), want, atol=1e-4, rtol=1e-4)


def check_files(
    model: Logits, make: Callable[[], nn.Module], inputs: dict[str, Tensor], want: Tensor
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(model.model, "save_pretrained") and hasattr(model.model, "config"):
            model.model.save_pretrained(folder)
            other = type(model.model).from_pretrained(folder)
        else:
            torch.save(model.model.state_dict(), f"{folder}/model.pt")
            other = make()
            replace_head(other)
            other.load_state_dict(torch.load(f"{folder}/model.pt", weights_only=True))
        with torch.no_grad():
            got = Logits(other.eval())(**inputs)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def row(architecture: Architecture) -> dict[str, str]:
    """A row of the table: facts, and each check's "yes" or the kind of its error."""
    torch.manual_seed(0)
    inner = architecture.make().eval()
    done = replace_head(inner)
    model, inputs = Logits(inner), architecture.inputs()
    if done.head.bias is not None:
        nn.init.normal_(done.head.bias)
    result = facts(architecture, done)
    want = check_forward(model, done, inputs)
    checks: dict[str, Callable[[], object]] = {
        "forward": lambda: None,
        "backward": lambda: check_backward(model, done, inputs),
        "export": lambda: check_export(model, inputs, want),
        "compile": lambda: check_compile(model, inputs, want),
        "files": lambda: check_files(model, architecture.make, inputs, want),
    }
    for name, check in checks.items():
        try:
            check()
            result[name] = "yes"
        except Exception as error:
            result[name] = type(error).__name__
            print(f"{architecture.name}, {name}: {error}", file=sys.stderr)
    return result


def read() -> dict[tuple[str, str], dict[str, str]]:
    """The rows of the table that was written, by library and architecture."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(cells[0], each, strict=True)) for each in cells[2:]]
    return {(row["library"], row["architecture"]): row for row in rows}


def write(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    """In the order of ARCHITECTURES, without those that are no longer there."""
    import timm
    import torchvision
    import transformers

    versions = {m.__name__: m.__version__ for m in (timm, torchvision, transformers)}
    versions["torchvision"] = versions["torchvision"].partition("+")[0]
    keys = [(a.library, a.name) for a in ARCHITECTURES]
    known = [rows[key] for key in keys if key in rows]
    TABLE.write_text(HEADER.format(count=len(known), **versions) + tables.markdown(known))


def main(words: list[str]) -> None:
    warnings.simplefilter("ignore")
    rows = read() if TABLE.exists() else {}
    for architecture in ARCHITECTURES:
        name = architecture.name.lower()
        if words and not any(word.lower() in name for word in words):
            continue
        new = row(architecture)
        print(" | ".join(new.values()), flush=True)
        rows[architecture.library, architecture.name] = new
        write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
