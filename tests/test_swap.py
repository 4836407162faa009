"""`replace_head` in models of timm, torchvision and transformers with random weights, and others:
what it finds, what it keeps, what it refuses, and what the model survives afterwards."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fixclf_infer
from bench import torchvision_on_cpu  # noqa: F401  (processes of their own import no conftest)
from fixclf_infer import reference, replace_head
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier, FixedClassifier2d

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def randomised(head: FixedClassifier) -> FixedClassifier:
    """Classes differ by more than their rows."""
    if head.bias is not None:
        with torch.no_grad():
            head.bias.normal_()
    return head


class MLP(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.num_classes = classes
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.third = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())


class Wrapper(nn.Module):
    """As a LightningModule has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.num_classes = model, 1000

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


# Models.

IMAGE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 40}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 40}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BART |= {"vocab_size": 64, "max_position_embeddings": 40}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
PLAIN_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SEGFORMER = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}


def pretrained(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **options).eval()


def from_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **options).eval()


def small_bit() -> nn.Module:
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(layers=[1] * 4, channels=[128] * 4, num_classes=1000).eval()


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 48, num_classes=1000).eval()


def with_ids(*, decoder: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 2  # the end, where BART's classifier looks
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if decoder else {})


def with_image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


# Model, path of the head.
IMAGES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm resnet": (from_timm("test_resnet"), "fc"),
    "timm vit": (from_timm("test_vit", img_size=32), "head"),
    "timm convnext": (from_timm("test_convnext"), "head.fc"),
    "timm bit": (small_bit, "head.fc"),
    "torchvision shufflenet": (from_torchvision("shufflenet_v2_x0_5"), "fc"),
    "torchvision mobilenet": (from_torchvision("mobilenet_v3_small"), "classifier.3"),
    "torchvision squeezenet": (from_torchvision("squeezenet1_1"), "classifier.1"),
    "torchvision vit": (small_vit, "heads.head"),
    "wrapped": (lambda: Wrapper(timm.create_model("test_resnet")).eval(), "model.fc"),
    "sequential": (lambda: nn.Sequential(nn.Identity(), from_timm("test_resnet")()), "1.fc"),
}
PRETRAINED: dict[str, tuple[Callable[[], nn.Module], str, Callable[[], dict[str, Tensor]]]] = {
    "bert": (
        pretrained("BertForSequenceClassification", "BertConfig", **TEXT, num_labels=5),
        "classifier",
        with_ids,
    ),
    "roberta": (
        pretrained("RobertaForSequenceClassification", "RobertaConfig", **TEXT, num_labels=5),
        "classifier.out_proj",
        with_ids,
    ),
    "tokens": (
        pretrained("BertForTokenClassification", "BertConfig", **TEXT, num_labels=5),
        "classifier",
        with_ids,
    ),
    "gpt2": (
        pretrained("GPT2ForSequenceClassification", "GPT2Config", **GPT2, num_labels=5),
        "score",
        with_ids,
    ),
    "bart": (
        pretrained("BartForSequenceClassification", "BartConfig", **BART, num_labels=5),
        "classification_head.out_proj",
        with_ids,
    ),
    "vit": (
        pretrained("ViTForImageClassification", "ViTConfig", **IMAGE, num_labels=5),
        "classifier",
        with_image,
    ),
    "resnet": (
        pretrained("ResNetForImageClassification", "ResNetConfig", **PLAIN_RESNET, num_labels=5),
        "classifier.1",
        with_image,
    ),
    "segformer": (
        pretrained(
            "SegformerForSemanticSegmentation", "SegformerConfig", **SEGFORMER, num_labels=5
        ),
        "decode_head.classifier",
        with_image,
    ),
    "timm wrapper": (
        pretrained(
            "TimmWrapperForImageClassification",
            "TimmWrapperConfig",
            architecture="test_resnet",
            num_labels=5,
        ),
        "timm_model.fc",
        with_image,
    ),
}
LANGUAGE: dict[str, tuple[Callable[[], nn.Module], str, Callable[[], dict[str, Tensor]]]] = {
    "gpt2": (pretrained("GPT2LMHeadModel", "GPT2Config", **GPT2), "lm_head", with_ids),
    "bert": (
        pretrained("BertForMaskedLM", "BertConfig", **TEXT),
        "cls.predictions.decoder",
        with_ids,
    ),
    "t5": (
        pretrained("T5ForConditionalGeneration", "T5Config", **T5),
        "lm_head",
        lambda: with_ids(decoder=True),
    ),
    "untied llama": (pretrained("LlamaForCausalLM", "LlamaConfig", **TEXT), "lm_head", with_ids),
}


def through(model: nn.Module, path: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What goes into the head at path, and what comes out of it, before a ReLU in place."""
    seen: list[Tensor] = []
    layer = model.get_submodule(path)
    handle = layer.register_forward_hook(
        lambda _, x, z: seen.extend((x[0].detach(), z.detach().clone()))
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0], seen[1]


def assert_is_head(head: FixedClassifier, x: Tensor, z: Tensor) -> None:
    """Against the dense product in float64."""
    if isinstance(head, FixedClassifier2d):
        x, z = x.movedim(1, -1), z.movedim(1, -1)
    bias = None if head.bias is None else head.bias.detach().numpy()
    want = reference.head(
        x.reshape(-1, x.shape[-1]).numpy(),
        head.codebook.matrix(),
        head.alpha.item(),
        bias,
        Epilogue.LOGITS,
    )
    np.testing.assert_allclose(z.reshape(-1, z.shape[-1]).numpy(), want, rtol=0, atol=1e-5)


def body(model: nn.Module, path: str) -> dict[str, Tensor]:
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if not name.startswith(f"{path}.")
    }


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


# What it finds, and what follows.


@pytest.mark.parametrize("classes", [None, 7])
@pytest.mark.parametrize("case", IMAGES)
def test_image_models(case: str, classes: int | None) -> None:
    make, path = IMAGES[case]
    model = make()
    before, old = body(model, path), model.get_submodule(path)
    total = sum(p.numel() for p in model.parameters())
    done = replace_head(model, classes)
    randomised(done.head)
    assert done.path == path
    assert model.get_submodule(path) is done.head
    assert done.old_head is old
    assert done.head.num_classes == (classes or 1000)
    assert not done.head.training
    assert done.model_parameters == total
    left = sum(p.numel() for p in model.parameters())
    assert total - left == done.old_parameters - done.new_parameters
    assert done.old_parameters == sum(p.numel() for p in old.parameters())
    assert done.new_parameters == sum(p.numel() for p in done.head.parameters())
    assert done.tied_to == ()
    assert_same(body(model, path), before)
    image = with_image()["pixel_values"]
    x, z = through(model, path, {next(iter(_arguments(model))): image})
    assert_is_head(done.head, x, z)
    for module in model.modules():
        assert getattr(module, "num_classes", done.head.num_classes) == done.head.num_classes
    text = str(done)
    assert f"{path}: {type(old).__name__}" in text
    assert f"{done.old_parameters:,} parameters" in text


def _arguments(model: nn.Module) -> list[str]:
    import inspect

    return list(inspect.signature(model.forward).parameters)


@pytest.mark.parametrize("case", PRETRAINED)
def test_transformers(case: str, tmp_path: Path) -> None:
    make, path, inputs = PRETRAINED[case]
    model = make()
    before = body(model, path)
    model.config.id2label = dict(enumerate("abcde"))
    assert replace_head(model).path == path
    assert model.config.id2label == dict(enumerate("abcde"))
    done = replace_head(model, 6, learn_alpha=False, codebook="hadamard")
    randomised(done.head)
    assert model.config.num_labels == 6
    assert model.config.id2label == {i: f"LABEL_{i}" for i in range(6)}
    assert model.config.label2id == {f"LABEL_{i}": i for i in range(6)}
    assert getattr(model, "num_labels", 6) == 6
    assert_same(body(model, path), before)
    x, z = through(model, path, inputs())
    assert_is_head(done.head, x, z)

    model.save_pretrained(tmp_path)
    other, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert_same(other.state_dict(), model.state_dict())
    assert not any("alpha" in name for name, _ in other.named_parameters())
    assert torch.equal(other.get_submodule(path)(x), z)
    # A plain model: it casts (a quantised one refuses), trains and is saved again.
    other.half().float()
    assert not other.is_quantized
    other.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert type(again.get_submodule(path)) is type(done.head)
    with pytest.raises(ValueError, match=r"num_labels is 9, .* fixed head of 6 classes"):
        type(model).from_pretrained(tmp_path, num_labels=9)


@pytest.mark.parametrize("case", LANGUAGE)
def test_language_models(case: str, tmp_path: Path) -> None:
    make, path, inputs = LANGUAGE[case]
    model = make()
    embeddings = model.get_input_embeddings().weight
    total = sum(p.numel() for p in model.parameters())
    tied = model.get_output_embeddings().weight is embeddings
    assert tied == (case != "untied llama")
    done = replace_head(model)
    randomised(done.head)
    assert done.path == path
    assert done.head.num_classes == 64
    assert model.config.num_labels == 2
    left = sum(p.numel() for p in model.parameters())
    assert total - left == done.old_parameters - done.new_parameters
    names = dict(model.named_parameters())
    assert all(names[name] is embeddings for name in done.tied_to)
    assert len(done.tied_to) == tied
    if case == "bert":
        assert model.cls.predictions.bias is done.head.bias
    model.tie_weights()  # has nothing to tie any more
    assert model.get_input_embeddings().weight is embeddings
    x, z = through(model, path, inputs())
    assert_is_head(done.head, x, z)

    model.save_pretrained(tmp_path)
    other, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert_same(other.state_dict(), model.state_dict())
    if case == "bert":
        assert other.cls.predictions.bias is other.cls.predictions.decoder.bias


def test_generation_goes_on() -> None:
    model = LANGUAGE["gpt2"][0]()
    done = replace_head(model)
    prompt = torch.tensor([[5, 6, 7]])
    tokens = model.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)
    for at in range(3, 6):
        x, _ = through(model, "lm_head", {"input_ids": tokens[:, :at]})
        assert done.head.argmax(x[:, -1]).item() == tokens[0, at]


def test_any_module() -> None:
    model, sequential = MLP(), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    assert replace_head(model).path == "third"
    assert replace_head(sequential, 5).path == "2"
    assert sequential(torch.randn(2, 8)).shape == (2, 5)
    detector = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    done = replace_head(detector, name="classifier.high_classifier")
    assert isinstance(done.head, FixedClassifier2d)


def test_a_head_can_be_named() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1).eval()
    for name in ("head", "head_dist"):
        assert replace_head(model, 7, name=name).path == name
    image = with_image()["pixel_values"]
    with torch.no_grad():
        z = model(image)
        x, y = model.forward_features(image)[:, :2].unbind(1)
        want = (model.head(x) + model.head_dist(y)) / 2
    assert model.num_classes == 7
    torch.testing.assert_close(z, want)


def test_a_head_used_twice() -> None:
    class Twice(MLP):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.third

    model = Twice()
    done = replace_head(model)
    assert model.third is model.again is done.head


def test_a_fixed_head_is_replaced_again() -> None:
    model = from_timm("test_resnet")()
    replace_head(model, codebook="etf" if model.num_features > 1000 else "search")
    done = replace_head(model, 12)
    assert done.old_head.codebook.kind == "search"
    assert (model.num_classes, done.head.codebook.kind) == (12, "hadamard")
    assert model.get_classifier() is done.head


def test_what_timm_does_next() -> None:
    model, image = from_timm("test_resnet")(), with_image()["pixel_values"]
    replace_head(model, 7)
    features = model.forward_head(model.forward_features(image), pre_logits=True)
    assert torch.equal(model.fc(features), model(image))
    model.reset_classifier(0)
    assert torch.equal(model(image), features)
    model.reset_classifier(5)  # a new dense head, as timm has it
    assert type(model.fc) is nn.Linear
    assert replace_head(model).head.num_classes == model.num_classes == 5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_what_is_kept(place: str, dtype: torch.dtype, training: bool, bias: bool) -> None:
    for layer in (nn.Linear(16, 10, bias), nn.Conv2d(16, 10, 1, bias=bias)):
        model = nn.Sequential(nn.Linear(8, 16), layer).to(place, dtype).train(training)
        head = replace_head(model, alpha=3.0).head
        assert {(p.device.type, p.dtype) for p in head.parameters()} == {(place, dtype)}
        assert (head.bias is not None) == bias
        assert head.training == training
        assert isinstance(head, FixedClassifier2d) == isinstance(layer, nn.Conv2d)
        assert (replace_head(model, bias=not bias).head.bias is not None) != bias
        if place == "cpu":
            assert head.alpha.item() == 3.0


def test_a_base_model_is_loaded_without_the_head(tmp_path: Path) -> None:
    model = PRETRAINED["bert"][0]()
    replace_head(model)
    model.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert_same(base.state_dict(), model.bert.state_dict())
    assert not hasattr(base.config, "quantization_config")


def test_loaded_where_nothing_else_was_imported(tmp_path: Path) -> None:
    model = PRETRAINED["bert"][0]()
    randomised(replace_head(model).head)
    model.save_pretrained(tmp_path)
    torch.save(model(**with_ids()).logits, tmp_path / "logits.pt")
    code = f"""
import sys, torch
from bench import torchvision_on_cpu
import fixclf_infer.pretrained
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r})
ids = torch.tensor({with_ids()["input_ids"].tolist()})
assert torch.equal(model(input_ids=ids).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_script_of_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    script = text.split("```python\n")[1].split("```")[0]
    printed = text.split("```\n")[2].splitlines()
    exec(compile(script, "docs/training.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == printed[0]
    assert float(second.removeprefix("tensor(").removesuffix(")")) > 0.85


# What it refuses.


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.kind, self.colour = nn.Linear(16, 10), nn.Linear(16, 4)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4))


def quantised() -> nn.Module:
    model = PRETRAINED["bert"][0]()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "two heads": (TwoHeads, {}, r"several heads.*: kind \(Linear 16 → 10\), colour"),
    "two heads of a list": (
        from_timm("crossvit_9_240", depth=((1, 1, 0),) * 3),
        {},
        r"head\.0 \(Linear 128 → 1000\), head\.1 \(Linear 256 → 1000\)",
    ),
    "distilled": (
        from_timm("deit_tiny_distilled_patch16_224", depth=1),
        {},
        r"head \(Linear 192 → 1000\), head_dist",
    ),
    "with a teacher": (
        pretrained("DeiTForImageClassificationWithTeacher", "DeiTConfig", **IMAGE),
        {},
        r"several heads.*: cls_classifier .*, distillation_classifier",
    ),
    "language and more": (
        pretrained("GPT2DoubleHeadsModel", "GPT2Config", **GPT2),
        {},
        r"several heads.*: lm_head .*, multiple_choice_head.summary",
    ),
    "two models": (
        lambda: nn.ModuleDict({"a": MLP(), "b": MLP()}),
        {},
        r"several heads.*a\.third .*, b\.third",
    ),
    "no head": (
        from_timm("test_resnet", num_classes=0),
        {},
        r"ResNet has no head.*layer4\.0\.downsample",
    ),
    "no head of transformers": (
        pretrained("BertModel", "BertConfig", **TEXT),
        {},
        r"BertModel has no head.*pooler\.dense \(Linear 32 → 32\)",
    ),
    "a norm at the end": (with_norm, {}, r"Sequential has no head.*0 \(Linear 8 → 4\)"),
    "a large kernel": (lambda: nn.Sequential(nn.Conv2d(8, 4, 3)), {}, "Sequential has no head"),
    "the layer itself": (lambda: nn.Linear(8, 4), {}, "Linear has no head"),
    "attention": (
        lambda: nn.Sequential(nn.MultiheadAttention(8, 2)),
        {"name": "0.out_proj"},
        "name is '0.out_proj', which is NonDynamicallyQuantizableLinear",
    ),
    "an unknown name": (MLP, {"name": "fourth"}, r"'fourth', which is no module.*third \(Linear"),
    "a name of another kind": (
        from_timm("test_resnet"),
        {"name": "bn1"},
        "'bn1', which is BatchNorm2d",
    ),
    "lazy": (lazy, {}, "0 is LazyLinear, whose sizes are not known"),
    "DDP": (lambda: wrapped_in_ddp(MLP()), {}, "before DistributedDataParallel"),
    "quantised": (quantised, {}, "model is quantised"),
    "vocabulary": (LANGUAGE["gpt2"][0], {"num_classes": 65}, "num_classes is 65.*64 tokens"),
    "no classes": (MLP, {"num_classes": 0}, "num_classes"),
    "codebook's sizes": (
        MLP,
        {"codebook": fixclf_infer.codebook(16, 11)},
        "codebook is for in_features=16, num_classes=11, expected 16 and 10",
    ),
    "codebook's kind": (MLP, {"codebook": "nonsense"}, "nonsense"),
    "alpha": (MLP, {"alpha": float("nan")}, "alpha must be finite"),
}


def wrapped_in_ddp(model: nn.Module) -> nn.Module:
    """As DDP holds a model, without the processes that it needs."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_model_as_it_was(case: str) -> None:
    make, options, match = REFUSED[case]
    model = make()
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = {path: dict(vars(module)) for path, module in modules.items()}
    config = model.config.to_dict() if hasattr(model, "config") else None
    with pytest.raises(ValueError, match=match) as caught:
        replace_head(model, **options)
    assert "\n" not in str(caught.value)
    after = dict(model.named_modules(remove_duplicate=False))
    assert after.keys() == modules.keys() and all(after[p] is m for p, m in modules.items())
    for path, module in after.items():
        assert vars(module).keys() == attributes[path].keys()
        for name, value in attributes[path].items():
            assert vars(module)[name] is value
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert now.keys() == tensors.keys() and all(now[name] is t for name, t in tensors.items())
    assert config is None or model.config.to_dict() == config


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model is dict, expected a torch.nn.Module"):
        replace_head({})


def test_placed_by_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(MLP(), torch.device("cpu"))
    with pytest.raises(ValueError, match="third has a hook of accelerate"):
        replace_head(model)


# What the model survives.


SURVIVORS = {name: IMAGES[name][0] for name in ("timm resnet", "torchvision squeezenet")}
survivors = pytest.mark.parametrize("case", SURVIVORS)


def survivor(case: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = SURVIVORS[case]()
    randomised(replace_head(model, 10).head)
    return model


@survivors
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only", "whole", "safetensors"])
def test_copies(case: str, way: str, tmp_path: Path) -> None:
    model, image, path = survivor(case), with_image()["pixel_values"], tmp_path / "file"
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "whole":
        torch.save(model, path)
        other = torch.load(path, weights_only=False)
    else:
        other = survivor(case, seed=1).eval()
        assert not torch.equal(other(image), model(image))
        if way == "weights_only":
            torch.save(model.state_dict(), path)
            other.load_state_dict(torch.load(path, weights_only=True))
        else:
            safetensors.torch.save_model(model, path)
            safetensors.torch.load_model(other, path)
    assert torch.equal(other(image), model(image))
    assert other.get_submodule(IMAGES[case][1]) is not model.get_submodule(IMAGES[case][1])


@survivors
def test_compiled_and_exported(case: str) -> None:
    model, image = survivor(case), with_image()["pixel_values"]
    with torch.no_grad():
        want = model(image)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), want)
        exported = torch.export.export(model, (image,))
        torch.testing.assert_close(exported.module()(image), want)
    names = {str(node.target) for node in exported.graph.nodes}
    assert "fixclf.head.default" in names


@survivors
def test_moving_averages(case: str) -> None:
    from timm.utils import ModelEmaV3
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model, image = survivor(case), with_image()["pixel_values"]
    swa = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    ema = ModelEmaV3(model, decay=0.5)
    head = model.get_submodule(IMAGES[case][1])
    start = head.bias.detach().clone()
    with torch.no_grad():
        head.bias.add_(1)
    swa.update_parameters(model)  # the first takes the model as it is
    for _ in range(2):
        swa.update_parameters(model)
        ema.update(model)
    averaged = ema.module.get_submodule(IMAGES[case][1])
    torch.testing.assert_close(averaged.bias, start + 0.75)
    torch.testing.assert_close(swa.module.get_submodule(IMAGES[case][1]).bias, start + 1)
    torch.testing.assert_close(swa.module(image), model(image))
    assert torch.isfinite(ema.module(image)).all()


@survivors
def test_autocast(case: str) -> None:
    model, image, path = survivor(case), with_image()["pixel_values"], IMAGES[case][1]
    with torch.autocast("cpu", torch.bfloat16):
        x, z = through(model, path, {_arguments(model)[0]: image})
        assert x.dtype == z.dtype == torch.bfloat16
        nn.functional.cross_entropy(model(image).float(), torch.tensor([1, 2])).backward()
    torch.testing.assert_close(z.float(), model.get_submodule(path)(x.float()), atol=0.1, rtol=0)
    for parameter in model.get_submodule(path).parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().sum() > 0


@survivors
def test_from_meta(case: str) -> None:
    model, image = survivor(case), with_image()["pixel_values"]
    with torch.device("meta"):
        other = SURVIVORS[case]().eval()
    replace_head(other, 10)
    assert {p.device.type for p in other.parameters()} == {"meta"}
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(other(image), model(image))
    with torch.device("meta"):
        third = SURVIVORS[case]().eval()
    replace_head(third, 10)
    third.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(third(image), model(image))


# Two processes.


def replica(case: str) -> nn.Module:
    torch.manual_seed(5)
    if case == "mlp":
        model: nn.Module = MLP(1000)
    else:
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 1000, 1))
    replace_head(model, 60)
    return model


def batch(case: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    if case == "mlp":
        return torch.randn(6, 8, generator=generator), torch.arange(6)
    return torch.randn(6, 3, 5, 5, generator=generator), torch.arange(6)[:, None, None].repeat(
        1, 3, 3
    )


def steps(model: nn.Module, case: str, rank: int = 0, world: int = 1) -> list[float]:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(3):
        x, y = batch(case)
        loss = nn.functional.cross_entropy(model(x[rank::world]), y[rank::world])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def process(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for case in ("mlp", "convolution"):
        ddp = nn.parallel.DistributedDataParallel(replica(case))
        results[f"{case} ddp"] = steps(ddp, case, rank, 2)
        sharded = replica(case)
        fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
        try:
            replace_head(sharded)
        except ValueError as error:
            results["refusal"] = str(error)
        results[f"{case} fsdp2"] = steps(sharded, case, rank, 2)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()  # a process that goes first would cut off what the other still sends
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case in ("mlp", "convolution"):
        want = torch.tensor(steps(replica(case), case))
        assert want[-1] < want[0]
        for way in ("ddp", "fsdp2"):
            got = torch.tensor([each[f"{case} {way}"] for each in results]).mean(0)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert "is sharded" in results[0]["refusal"]
