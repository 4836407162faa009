"""`replace_head`: the last layer of a model that exists, replaced by a fixed head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from .codebooks import Codebook
from .nn import FixedClassifier, FixedClassifier2d

# Attributes that hold a head in torchvision's models.
_TORCHVISION = ("fc", "classifier", "heads", "head")
# Attributes in which models keep the number of classes.
_COUNTS = ("num_classes", "num_labels")


@dataclass(frozen=True)
class Replacement:
    """What `replace_head` did. `print` shows it in one line."""

    path: str  # where in the model
    head: FixedClassifier  # the new head
    old_head: nn.Module = field(
        repr=False
    )  # as it was, for distillation; drop it to free its memory
    old_parameters: int  # those that left the model: a weight tied to another module stays
    new_parameters: int
    model_parameters: int  # of the model before
    tied_to: tuple[str, ...] = ()  # parameters that the old head shared, and that stay

    def __str__(self) -> str:
        share = 100 * self.old_parameters / max(self.model_parameters, 1)
        text = (
            f"{self.path}: {_describe(self.old_head)}, {self.old_parameters:,} parameters "
            f"({share:.3g} % of the model), is now {_describe(self.head)} with the codebook "
            f"{self.head.codebook.kind!r}, {self.new_parameters:,} parameters"
        )
        if self.tied_to:
            text += f"; {', '.join(self.tied_to)} stays, which the old head shared"
        return text


@dataclass(frozen=True)
class _Place:
    path: str  # from the model that was given
    owner: nn.Module  # the timm, torchvision, transformers or other model that has the head
    inner: str  # from the owner


def replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    codebook: str | Codebook = "auto",
    name: str | None = None,
    bias: bool | None = None,
    **options: Any,
) -> Replacement:
    """Replaces, in place, the last dense layer of model by a `FixedClassifier` (a 1×1 convolution
    by a `FixedClassifier2d`) of the same dtype, device and training mode.

    Where the head is: timm's `get_classifier()`; torchvision's `fc`, `classifier`, `heads` or
    `head`; in transformers the layer outside of the base model that is as wide as
    `config.num_labels`, or the output embeddings; in any other module, and where these hold several
    layers, the last one, if no other reads the same features. A module that only wraps one of these
    is looked into.

    What counts classes follows: `num_classes` and `num_labels` of the modules around the head, and
    transformers' `config.num_labels`, `id2label` and `label2id`. `save_pretrained` writes what
    `from_pretrained` needs to build the head again, once `fixclf_infer.pretrained` is imported.
    A transformers' weight that is tied to the input embeddings stays there and is tied no more.

    Args:
        num_classes: C of the new head; that of the old one when None.
        codebook: a kind for `fixclf_infer.codebook`, or a `Codebook` of these sizes.
        name: path of the layer to replace, as in `model.named_modules()`.
        bias: whether the new head has a bias; as the old one when None.
        options: further arguments of `FixedClassifier`: alpha, learn_alpha and so on.

    Call it before an optimiser, DDP, FSDP or accelerate takes the model's parameters. The new head
    learns, whether the old one was frozen or not, and starts as `FixedClassifier` does. A head that
    is fixed already is replaced, too: so the number of classes or the codebook can change.

    Raises:
        TypeError: model is no `nn.Module`.
        ValueError: no head, or several, were found (it names them); name is not a head; a size is
            out of range; the model is wrapped or placed already; the number of output embeddings
            would differ from the vocabulary. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    place = _find(model) if name is None else _named(model, name)
    old = model.get_submodule(place.path)
    _check_ready(model, place.path)
    features, classes = sizes(old)
    wanted = classes if num_classes is None else num_classes
    from_transformers = _is_transformers(place.owner)
    if from_transformers:
        from . import pretrained

        pretrained.check(place.owner, old, classes, wanted)
    first = next(old.parameters())
    old_bias = getattr(old, "bias", None)
    kind = FixedClassifier2d if isinstance(old, nn.Conv2d | FixedClassifier2d) else FixedClassifier
    new = kind(
        features,
        wanted,
        old_bias is not None if bias is None else bias,
        first.device,
        first.dtype,
        codebook=codebook,
        **options,
    )
    new.train(old.training)

    # From here on nothing fails.
    total = _count(model)
    elsewhere = _elsewhere(model, old)
    if from_transformers:
        learns = options.get("learn_alpha", True)
        pretrained.follow(place.owner, place.inner, old, new, learn_alpha=learns)
    for module in _around(model, place.path):
        for attribute in _COUNTS:
            value = vars(module).get(attribute)
            if type(value) is int and value == classes:
                setattr(module, attribute, wanted)
    if new.bias is not None and old_bias is not None and wanted == classes:
        # BERT has the bias of its decoder a second time, beside it.
        for path in elsewhere.pop(id(old_bias), []):
            _put(model, path, new.bias)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            _put(model, path, new)
    stay = [p for p in old.parameters() if id(p) in elsewhere]
    return Replacement(
        path=place.path,
        head=new,
        old_head=old,
        old_parameters=_count(old) - sum(p.numel() for p in stay),
        new_parameters=_count(new),
        model_parameters=total,
        tied_to=tuple(elsewhere[id(p)][0] for p in stay),
    )


# Where the head is.


def _find(model: nn.Module) -> _Place:
    owner, prefix = model, ""
    while True:
        layers = _of_library(owner)
        if layers is not None:
            break
        learned = [(n, m) for n, m in owner.named_children() if any(True for _ in m.parameters())]
        alone = len(learned) == 1 and not _own(owner)
        if not alone or is_layer(learned[0][1]):
            layers = _last(owner)
            break
        prefix, owner = f"{prefix}{learned[0][0]}.", learned[0][1]
    kind = type(model).__name__
    if not layers:
        some = _listed("", model, list(_layers(model)))
        raise ValueError(
            f"{kind} has no head that replace_head can tell: expected a last layer that is an "
            f"nn.Linear or a 1×1 nn.Conv2d; name= can say which one it is, of {some}"
        )
    inner = layers[-1]
    rivals = [path for path in layers if path != inner and _rival(owner, path, inner, layers)]
    if rivals:
        some = _listed(prefix, owner, [*rivals, inner])
        raise ValueError(f"{kind} has several heads, name= must say which one to replace: {some}")
    return _Place(prefix + inner, owner, inner)


def _named(model: nn.Module, name: str) -> _Place:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules or not is_layer(modules[name]):
        what = "no module" if name not in modules else f"{type(modules[name]).__name__}"
        some = _listed("", model, list(_layers(model)))
        raise ValueError(
            f"name is {name!r}, which is {what} of the model, expected an nn.Linear or a 1×1 "
            f"nn.Conv2d, of {some}"
        )
    owners = [path for path in modules if _within(name, path) and _is_transformers(modules[path])]
    owner = min(owners, key=len, default="")
    inner = name[len(owner) + 1 :] if owner else name
    return _Place(name, modules[owner], inner)


def _of_library(model: nn.Module) -> list[str] | None:
    """Paths of the layers among which the head of a known library's model is."""
    if _is_transformers(model):
        from . import pretrained

        return pretrained.candidates(model, _layers(model))
    get_classifier: Any = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        given = get_classifier()
        heads = {id(m) for m in (given if isinstance(given, tuple | list) else (given,))}
        roots = [path for path, m in model.named_modules() if id(m) in heads]
    elif type(model).__module__.startswith("torchvision.models."):
        roots = [path for path in _TORCHVISION if hasattr(model, path)]
    else:
        return None
    return [path for path in _layers(model) if any(_within(path, root) for root in roots)]


def _last(model: nn.Module) -> list[str]:
    """All layers like the last one, of a model that ends with it, as far as one can see."""
    learned = [(path, m) for path, m in model.named_modules() if _own(m)]
    if not learned or not is_layer(learned[-1][1]):
        return []
    convolution = _is_convolution(learned[-1][1])
    return [path for path, m in _layers(model).items() if _is_convolution(m) == convolution]


def _rival(model: nn.Module, path: str, last: str, layers: list[str]) -> bool:
    """Whether `path` may be a second head: neither before the last layer, nor inside a body."""
    parts, others = path.split("."), last.split(".")
    pairs = enumerate(zip(parts, others, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), None)
    if common is None:  # one holds the other
        return False
    if isinstance(model.get_submodule(".".join(parts[:common])), nn.Sequential):
        return False
    branch = ".".join(parts[: common + 1])
    if path != [each for each in layers if _within(each, branch)][-1]:
        return False
    (n, c), (last_n, last_c) = (sizes(model.get_submodule(each)) for each in (path, last))
    return c != last_n and (n == last_n or c == last_c)


def _is_transformers(model: nn.Module) -> bool:
    return hasattr(model, "base_model_prefix") and hasattr(
        getattr(model, "config", None), "num_labels"
    )


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | FixedClassifier2d)


def is_layer(module: nn.Module | None) -> bool:
    """Whether it can be replaced. Attention reads the weight of its last layer, not the layer."""
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1
        return plain and module.padding in ((0, 0), "valid", "same")
    linear = isinstance(module, nn.Linear) and not isinstance(
        module, NonDynamicallyQuantizableLinear
    )
    return linear or isinstance(module, FixedClassifier)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if path and is_layer(m)}


def _within(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


# What it looks like.


def sizes(layer: nn.Module) -> tuple[int, int]:
    """N and C."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear | FixedClassifier)
    return layer.in_features, layer.out_features


def _describe(layer: nn.Module) -> str:
    n, c = sizes(layer)
    return f"{type(layer).__name__} {n} → {c}"


def _listed(prefix: str, owner: nn.Module, paths: list[str]) -> str:
    if not paths:
        return "which there is none"
    named = [f"{prefix}{path} ({_describe(owner.get_submodule(path))})" for path in paths[-8:]]
    more = f"{len(paths) - 8} more, " if len(paths) > 8 else ""
    return more + ", ".join(named)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# What changes.


def _check_ready(model: nn.Module, path: str) -> None:
    layer = model.get_submodule(path)
    for parameter in layer.parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"{path} is {type(layer).__name__}, whose sizes are not known before a first batch"
            )
        if hasattr(parameter, "device_mesh"):
            raise ValueError(
                f"{path} is sharded: replace the head before fully_shard takes the model"
            )
        if not parameter.is_floating_point():
            raise ValueError(
                f"{path} has {parameter.dtype} parameters, expected floating point: replace the "
                "head before the model is quantised"
            )
    for module in _around(model, path):
        if isinstance(
            module, nn.parallel.DistributedDataParallel
        ) or "FullyShardedDataParallel" in {t.__name__ for t in type(module).__mro__}:
            raise ValueError(f"model is wrapped: replace the head before {type(module).__name__}")
    if hasattr(layer, "_hf_hook"):
        raise ValueError(f"{path} has a hook of accelerate: replace the head before it is placed")


def _around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules that hold the layer, the model first."""
    yield model
    parts = path.split(".")[:-1]
    for i in range(len(parts)):
        yield model.get_submodule(".".join(parts[: i + 1]))


def _elsewhere(model: nn.Module, layer: nn.Module) -> dict[int, list[str]]:
    """Where else in the model the parameters of the layer are."""
    own = {id(p) for p in layer.parameters()}
    found: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        if module is layer:
            continue
        for name, p in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if id(p) in own:
                found.setdefault(id(p), []).append(name)
    return found


def _put(model: nn.Module, path: str, value: Any) -> None:
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, value)
