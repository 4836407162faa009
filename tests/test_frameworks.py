"""FixedClassifier inside what people train and load with, where `torch.nn.Linear` works: whatever a
framework does to parameters and buffers, a head computes with its codebook, or raises."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from fixclf_infer.nn import FixedClassifier
from fixclf_infer.nn.classifier import default_alpha

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

# Sign masks, a base matrix, a dense codebook.
KINDS = {
    "masks": (16, 100, "kerdock"),
    "base": (24, 10, "hadamard"),
    "dense": (16, 9, "orthonormal"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def make(kind: str, codebook: str | None = None) -> FixedClassifier:
    features, classes, family = KINDS[kind]
    return FixedClassifier(features, classes, codebook=codebook or family, alpha=7.0)


def trained(head: FixedClassifier) -> FixedClassifier:
    with torch.no_grad():
        head.alpha = 3.5
        head.bias.normal_()
    return head


def network(kind: str) -> nn.Sequential:
    head = make(kind)
    return nn.Sequential(nn.Linear(8, head.in_features), head)


def features(kind: str) -> torch.Tensor:
    return torch.randn(5, KINDS[kind][0])


# The bits are no state.


@kinds
def test_nothing_but_alpha_and_bias_is_state(kind: str) -> None:
    head = make(kind)
    assert [name for name, _ in head.named_parameters()] == ["alpha_spread", "bias"]
    assert list(head.buffers()) == []
    assert head.alpha.shape == (1,)
    assert set(head.state_dict()) == {"alpha", "alpha_spread", "bias", "_extra_state"}


@kinds
@pytest.mark.parametrize(
    "harm",
    [
        lambda head: head.to_empty(device="cpu"),
        lambda head: head.type("torch.FloatTensor"),
        lambda head: head.half().float(),
        lambda head: head.share_memory(),
        lambda head: head._apply(lambda t: torch.zeros_like(t)),
    ],
    ids=["to_empty", "type", "half", "share_memory", "zeros"],
)
def test_bits_survive_what_happens_to_tensors(kind: str, harm) -> None:
    head, x = make(kind), features(kind)
    want = head(x)
    harm(head)
    head.reset_parameters()
    assert torch.equal(head(x), want)


@kinds
def test_meta(kind: str) -> None:
    x = features(kind)
    with torch.device("meta"):
        head = make(kind)
    assert head.alpha.is_meta
    assert head(x.to("meta")).shape == (5, head.num_classes)
    assert torch.equal(head.to_empty(device="cpu")(x), make(kind)(x))


@kinds
def test_averages_of_parameters_and_buffers(kind: str) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = network(kind)
    average = get_ema_multi_avg_fn(0.9999)
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    for _ in range(200):
        averaged.update_parameters(model)
    x = torch.randn(5, 8)
    assert torch.equal(averaged(x), model(x))


def test_lightning_averages(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network("masks")

        def training_step(self, batch, _):
            x, y = batch
            return self.model[1].loss(self.model[0](x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    task = Task()
    data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randint(100, (64,)))
    x = torch.randn(5, 8)
    want = task.model(x).detach()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[EMAWeightAveraging(decay=0.9999)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=8))
    # Averages of equal floats are equal up to their rounding; those of bits were not.
    assert torch.allclose(task.model(x), want, atol=1e-5)


# transformers.


class Config(transformers.PretrainedConfig):
    model_type = "fixclf_test"


class Model(transformers.PreTrainedModel):
    config_class = Config

    def __init__(self, config: Config, kind: str = "masks", codebook: str | None = None) -> None:
        super().__init__(config)
        self.classifier = make(kind, codebook)
        self.body = nn.Linear(8, self.classifier.in_features)
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x))


class Dense(transformers.PreTrainedModel):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.body = nn.Linear(8, 16)
        self.classifier = nn.Linear(16, 100)
        self.post_init()


@kinds
def test_from_pretrained(kind: str, tmp_path: Path) -> None:
    model = Model(Config(), kind)
    trained(model.classifier)
    model.save_pretrained(tmp_path)
    other, x = Model.from_pretrained(tmp_path, kind=kind), torch.randn(5, 8)
    assert torch.equal(other(x), model(x))
    other.save_pretrained(tmp_path / "again")
    assert torch.equal(Model.from_pretrained(tmp_path / "again", kind=kind)(x), model(x))


def test_from_pretrained_takes_the_codebook_of_the_file(tmp_path: Path) -> None:
    model = Model(Config(), codebook="search")
    model.save_pretrained(tmp_path)
    other, x = Model.from_pretrained(tmp_path), torch.randn(5, 8)
    assert other.classifier.codebook.kind == "search"
    assert torch.equal(other(x), model(x))


def test_from_pretrained_of_a_dense_model(tmp_path: Path) -> None:
    """What the file lacks, or has as a weight matrix, gets its start."""
    dense = Dense(Config())
    with torch.no_grad():
        dense.classifier.bias.normal_()
    dense.save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path)
    assert model.classifier.alpha.item() == 7.0
    assert torch.equal(model.classifier.bias, dense.classifier.bias)
    assert torch.equal(model.body.weight, dense.body.weight)
    # Initialised once: asking again must not undo training.
    trained(model.classifier)
    model.classifier._is_hf_initialized  # noqa: B018
    assert model.classifier.alpha.item() == 3.5


# accelerate.


def load_and_dispatch(path: Path, kind: str, device_map, **options) -> nn.Module:
    with accelerate.init_empty_weights():
        model = network(kind)
    return accelerate.load_checkpoint_and_dispatch(
        model, str(path), device_map=device_map, offload_folder=str(path.parent / "off"), **options
    )


@kinds
@pytest.mark.parametrize("offload_buffers", [False, True])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_load_checkpoint_and_dispatch(
    kind: str, place: str, offload_buffers: bool, tmp_path: Path
) -> None:
    model, x = network(kind), torch.randn(5, 8)
    trained(model[1])
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    device_map = {"0": "cpu", "1": place}
    other = load_and_dispatch(path, kind, device_map, offload_buffers=offload_buffers)
    for _ in range(2):
        assert torch.equal(other(x), model(x))
    assert [name for name, _ in other.named_buffers()] == []


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_load_checkpoint_and_dispatch_takes_the_codebook_of_the_file(
    place: str, tmp_path: Path
) -> None:
    model, x = network("masks"), torch.randn(5, 8)
    model[1] = make("masks", "search")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = load_and_dispatch(tmp_path / "model.safetensors", "masks", {"0": "cpu", "1": place})
    assert torch.equal(other(x), model(x))
    assert other[1].codebook.kind == "search"
    assert other.state_dict().keys() == model.state_dict().keys()


@kinds
def test_cpu_offload_with_buffers(kind: str) -> None:
    model, x = network(kind), torch.randn(5, 8)
    other = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(other(x), model(x))


# State dicts.


def test_the_identity_has_one_size() -> None:
    sizes = {
        make(kind, book).get_extra_state().shape
        for kind, book in [
            ("masks", "kerdock"),
            ("masks", "search"),
            ("masks", "orthonormal"),
            ("base", None),
        ]
    }
    assert len(sizes) == 1
    longest = FixedClassifier(65536, 2**24).codebook.identity()
    assert len(str({**longest, "seed": 2**63 - 1, "kind": "delsarte_goethals"})) <= 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_a_cast_state_dict_loads(dtype: torch.dtype) -> None:
    head = make("masks", "search")
    state = {name: value.to(dtype) for name, value in head.state_dict().items()}
    other = make("masks")
    other.load_state_dict(state)
    x = features("masks")  # α = 7 and a bias of zeros survive every cast
    assert torch.equal(other(x), head(x))
    assert other.codebook.identity() == head.codebook.identity()


def test_an_averaged_state_dict_loads() -> None:
    heads = [trained(make("masks", "search")) for _ in range(7)]
    states = [head.state_dict() for head in heads]
    mean = {name: sum(state[name] for state in states) / 7 for name in states[0]}
    other = make("masks")
    other.load_state_dict(mean)
    assert other.codebook.identity() == heads[0].codebook.identity()
    assert torch.allclose(other.bias, sum(head.bias for head in heads) / 7)


def test_old_state_dicts_load() -> None:
    """α without a dimension, and the identity as bytes of any number."""
    import json

    head = trained(make("masks", "search"))
    text = json.dumps(head.codebook.identity()).encode()
    state = {
        "alpha": head.alpha.detach().reshape(()),
        "bias": head.bias.detach(),
        "_extra_state": torch.tensor(list(text), dtype=torch.uint8),
    }
    other, x = make("masks"), features("masks")
    other.load_state_dict(state)
    assert state["alpha"].dim() == 0
    assert torch.equal(other(x), head(x))
    with torch.device("meta"):
        empty = make("masks")
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(x), head(x))


# Modules that look or change.


class Absolute(nn.Module):
    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return t.abs()


@kinds
def test_parametrised_alpha(kind: str) -> None:
    head, x = make(kind), features(kind)
    head.alpha = -7.0
    parametrize.register_parametrization(head, "alpha_spread", Absolute())
    assert torch.equal(head(x), make(kind)(x))
    head.predict_proba(x).square().sum().backward()
    assert head.parametrizations.alpha_spread.original.grad.abs().min() > 0
    assert torch.equal(head.topk(x, 2)[1], make(kind).topk(x, 2)[1])


@kinds
def test_pruned_bias(kind: str) -> None:
    head = trained(make(kind))
    prune.l1_unstructured(head, "bias", 0.5)
    zero = torch.zeros(1, head.in_features)
    assert torch.equal(head(zero)[0], head.bias)
    assert (head(zero) == 0).sum() == head.num_classes // 2


@kinds
def test_replicas_of_data_parallel(kind: str) -> None:
    head, x = trained(make(kind)), features(kind)
    replica = head._replicate_for_data_parallel()
    for name, parameter in head.named_parameters():
        setattr(replica, name, parameter.detach().clone())  # as replicate() leaves them
    assert torch.equal(replica(x), head(x))
    assert torch.equal(replica.argmax(x), head.argmax(x))


@kinds
def test_traced_by_fx(kind: str) -> None:
    model, x = network(kind), torch.randn(5, 8)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    calls = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == ["_map"]


def test_prepared_by_fx() -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model, x = network("base").eval(), torch.randn(5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    assert torch.equal(prepared(x), model(x))


def test_feature_extractors() -> None:
    timm = pytest.importorskip("timm")
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    image = torch.randn(2, 3, 32, 32)
    model = resnet18(weights=None).eval()
    model.fc = FixedClassifier(512, 1000)
    nodes = create_feature_extractor(model, {"flatten": "features", "fc": "logits"})(image)
    assert torch.equal(nodes["logits"], model(image))
    assert torch.equal(model.fc(nodes["features"]), nodes["logits"])

    from timm.models import create_feature_extractor as timm_extractor

    small = timm.create_model("resnet10t", num_classes=10).eval()
    small.fc = FixedClassifier(small.num_features, 10)
    assert torch.equal(timm_extractor(small, {"fc": "logits"})(image)["logits"], small(image))


# Private training, nested tensors, signatures.


def test_opacus() -> None:
    opacus = pytest.importorskip("opacus")
    model = network("masks")
    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(100, (32,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimiser, loader = opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            data_loader=torch.utils.data.DataLoader(data, batch_size=8),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        for x, y in loader:
            if not len(x):
                continue
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            for parameter in model.parameters():
                total = parameter.grad_sample.mean(0)
                assert torch.allclose(total, parameter.grad, rtol=1e-4, atol=1e-5)
            optimiser.step()


@kinds
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(kind: str, layout: torch.layout) -> None:
    head = trained(make(kind))
    parts = [torch.randn(n, head.in_features) for n in (3, 1, 4)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    for method in (head.forward, head.predict_proba, head.predict_log_proba):
        got = method(nested)
        assert got.is_nested and got.layout == layout
        for each, part in zip(got.unbind(), parts, strict=True):
            assert torch.allclose(each, method(part), atol=1e-6)


def test_jagged_features_must_be_the_last_dimension() -> None:
    head = make("masks")
    parts = [torch.randn(n, 2, 16) for n in (3, 1)]
    with pytest.raises(ValueError, match="jagged tensor of 4 dimensions"):
        head(torch.nested.nested_tensor(parts, layout=torch.jagged))


def test_arguments_of_linear() -> None:
    for args, options in [
        ((24, 10, False), {}),
        ((24,), {"out_features": 10, "bias": False}),
        ((), {"in_features": 24, "out_features": 10, "bias": False, "dtype": torch.float64}),
        ((24, 10, False, "meta", torch.bfloat16), {}),
    ]:
        head, linear = FixedClassifier(*args, **options), nn.Linear(*args, **options)
        assert (head.in_features, head.out_features) == (24, 10)
        assert head.bias is None and linear.bias is None
        assert head.alpha.dtype == linear.weight.dtype
        assert head.alpha.device == linear.weight.device
    for options in ({}, {"num_classes": 3, "out_features": 3}):
        with pytest.raises(TypeError, match="num_classes and out_features"):
            FixedClassifier(24, **options)
    assert make("base").alpha.item() == 7.0
    assert FixedClassifier(24, 10).alpha.item() == pytest.approx(default_alpha(10))


def test_a_bias_with_gaps() -> None:
    head, x = trained(make("masks")), features("masks")
    want = head(x)
    wide = torch.zeros(100, 2)
    wide[:, 0] = head.bias.detach()
    head.bias = nn.Parameter(wide[:, 0])
    assert not head.bias.is_contiguous()
    assert torch.equal(head(x), want)
    assert torch.equal(head.argmax(x), want.argmax(-1))
    head.loss(x, torch.zeros(5, dtype=torch.int64)).backward()
    assert head.bias.grad.shape == (100,)


def test_dense_codebooks_keep_their_precision_under_autocast() -> None:
    head, x = trained(make("dense")), features("dense")
    want = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), want)
        assert torch.equal(head.predict_proba(x), want.softmax(-1))


@pytest.mark.parametrize("kind", ["masks", "dense"])
def test_sampling_a_batch_of_any_size(kind: str) -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = make(kind)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head.sample(x)

    sampler, batch = Sampler(), torch.export.Dim("batch")
    exported = torch.export.export(sampler, (features(kind),), dynamic_shapes={"x": {0: batch}})
    compiled = torch.compile(sampler, dynamic=True, fullgraph=True, backend="aot_eager")
    for run in (exported.module(), compiled):
        drawn = run(torch.randn(7, sampler.head.in_features))
        assert drawn.shape == (7,)
        assert ((drawn >= 0) & (drawn < sampler.head.num_classes)).all()
