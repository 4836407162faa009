"""Heads that `replace_head` has put into transformers' models: saved and loaded.

`save_pretrained` writes the head's α, bias and codebook identity, and `config.json` says under
`quantization_config`, which is where transformers looks for what changes a model before its weights
are loaded, that there is a fixed head and where. Importing this module teaches `from_pretrained` to
read it:

    import fixclf_infer.pretrained
    model = AutoModelForSequenceClassification.from_pretrained(path)

The model is not a quantised one for anybody else: it trains, casts and saves as it would otherwise.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .codebooks import from_identity
from .nn import FixedClassifier
from .swap import is_layer, replace_head, sizes

METHOD = "fixclf"


@register_quantization_config(METHOD)
class FixedHeadConfig(QuantizationConfigMixin):
    """What `config.json` says: the head's path, its codebook's identity, what it learns."""

    def __init__(
        self, name: str, codebook: dict[str, Any], bias: bool, learn_alpha: bool, **_: Any
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs are an enumeration
        self.name, self.codebook = name, codebook
        self.bias, self.learn_alpha = bias, learn_alpha


@register_quantizer(METHOD)
class FixedHeadLoader(HfQuantizer):
    """Puts the fixed head into the model before its weights are loaded. A model that has no such
    layer, as a base model has none, is loaded as it is."""

    replaced = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        record = self.quantization_config
        assert isinstance(record, FixedHeadConfig)
        book = record.codebook
        if not is_layer(dict(model.named_modules()).get(record.name)):
            return
        classes = sizes(model.get_submodule(record.name))[1]
        if classes != book["num_classes"]:
            raise ValueError(
                f"num_labels is {classes}, but the file has a fixed head of {book['num_classes']} "
                "classes: load it as it is, then call replace_head for another number"
            )
        replace_head(
            model,
            codebook=from_identity(book),
            name=record.name,
            bias=record.bias,
            learn_alpha=record.learn_alpha,
        )
        self.replaced = True

    def postprocess_model(self, model: Any, **_: Any) -> None:
        """Leaves a model that differs by its head alone."""
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        if self.replaced:
            model.config.quantization_config = self.quantization_config.to_dict()

    def is_serializable(self, *_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _output_embeddings(model: Any) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # models of images and speech have none
        return None
    return found


def candidates(model: Any, layers: dict[str, nn.Module]) -> list[str]:
    """Paths of the layers that are the output embeddings, or as wide as there are labels or tokens:
    outside of the base model, if any is."""
    output = _output_embeddings(model)
    widths = {model.config.num_labels, getattr(model.config, "vocab_size", None)}
    wide = [path for path, layer in layers.items() if layer is output or sizes(layer)[1] in widths]
    body = f"{model.base_model_prefix}." if model.base_model_prefix else "."
    return [path for path in wide if not path.startswith(body)] or wide


def check(model: Any, old: nn.Module, classes: int, wanted: int) -> None:
    """Raises ValueError where the model could not follow."""
    record = getattr(model.config, "quantization_config", None)
    if isinstance(record, QuantizationConfigMixin):
        record = record.to_dict()
    if record is not None and record.get("quant_method") != METHOD:
        raise ValueError("model is quantised, and its config.json can't say that its head is fixed")
    if old is _output_embeddings(model) and wanted != classes:
        raise ValueError(
            f"num_classes is {wanted}, but the head answers with the {classes} tokens of the "
            "vocabulary: call resize_token_embeddings before replace_head to change them"
        )


def follow(
    model: Any, name: str, old: nn.Module, new: FixedClassifier, *, learn_alpha: bool
) -> None:
    """Keeps the config in step with the new head, and its weight untied."""
    config = model.config
    if old is not _output_embeddings(model) and config.num_labels == sizes(old)[1]:
        config.num_labels = new.num_classes
    record = FixedHeadConfig(name, new.codebook.identity(), new.bias is not None, learn_alpha)
    config.quantization_config = record.to_dict()
    for keys in ("_tied_weights_keys", "all_tied_weights_keys"):
        tied = getattr(model, keys, None)
        if tied:
            setattr(model, keys, {k: v for k, v in tied.items() if k != f"{name}.weight"})
