"""Low-rank adapters on the LLM by peft: attached before training, merged into one model after it.

LoRA (2106.09685) adds B A beside a linear layer W; DoRA (2402.09353) also learns the length of each row of W + B A;
QLoRA (2305.14314) is LoRA over weights kept in four bits (NF4, quantised twice).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from revision import folders
from revision.model import RevisionForConditionalGeneration
from revision.training.merging import merged

METHODS = ("lora", "dora", "qlora")
ALL_LINEAR = "all-linear"
_NAME = "default"
_SHOWN = 12  # layer names that an error lists


class Adapter:
    """Matrices of low rank beside linear layers of the LLM's decoder, which itself is frozen.

    Args:
        model: changed in place: its parameters gain `lora_A`, `lora_B`, and `base_layer` in the names of the others.
        method: "lora", "dora" or "qlora".
        rank, alpha, dropout: of `peft.LoraConfig`; B A is scaled by alpha / rank.
        targets: "all-linear", names of layers, or regular expressions over their full names in the model.
        arguments: of the training; its device and precision are those of a four-bit base.

    Raises:
        ValueError: a target that matches nothing, an engine that the method does not work under, or for "qlora" a
            missing bitsandbytes or a device that it does not know.
    """

    def __init__(
        self,
        model: RevisionForConditionalGeneration,
        *,
        method: str,
        rank: int,
        alpha: float,
        dropout: float,
        targets: Sequence[str],
        arguments: TrainingArguments,
    ) -> None:
        assert method in METHODS, method
        _require_engine(arguments, method)
        self.model = model
        self._method = method
        self._config = _config(model, method, rank, alpha, dropout, targets)
        if method == "qlora":
            dtype = torch.bfloat16 if arguments.bf16 else torch.float32
            _to_four_bits(model, device=arguments.device, dtype=dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            self._tuner: Any = LoraModel(model, self._config, _NAME)

    def save(
        self, folder: Path, *, base: str, projector: bool, weights: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Writes the adapter alone, as `peft.PeftModel.from_pretrained(base model, folder)` reads it.

        Args:
            folder: is replaced.
            base: folder of the model that it was trained on.
            projector: whether the projector trained with it, and therefore has to go with it.
            weights: whole, by name, where the engine has them otherwise than the model: in pieces, or more exactly.

        Raises:
            ValueError: the disk is full or cannot be written.
        """
        held = self.model.state_dict() if weights is None else dict(weights)
        state = get_peft_model_state_dict(self.model, held, adapter_name=_NAME, save_embedding_layers=False)
        if projector:
            state |= {name: one for name, one in held.items() if name.startswith("projector.")}
        whole = {f"base_model.model.{name}": one.contiguous().cpu() for name, one in state.items()}
        aside = folder.with_name(f".{folder.name}.part")
        config = replace(
            self._config,
            base_model_name_or_path=base,
            inference_mode=True,
            modules_to_save=["projector"] if projector else None,
        )
        with folders.writing(folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            safetensors.torch.save_file(whole, aside / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(str(aside))
            folders.publish(aside, folder)

    def merge(self, weights: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor] | None:
        """Adds the adapter to the weights below it and takes it away; four-bit weights become full ones again.

        Each layer is merged in float32 and rounded once, to the type that it had.

        Args:
            weights: as in `save`.

        Returns:
            The merged weights by name; None: they are in the model.
        """
        if weights is not None and self._method != "qlora":
            found = merged(self.model, weights, _NAME)
            self._tuner.unload()
            return found
        for name, parameter in self.model.named_parameters():
            if weights is not None and parameter.requires_grad:
                parameter.data = weights[name].to(parameter.device)
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                if _in_four_bits(layer.base_layer):  # all of them whole at once would not fit on the device
                    layer.base_layer = _dequantised(layer.base_layer)
                    layer.cpu()
                base: Any = layer.get_base_layer()
                dtype = base.weight.dtype
                base.weight.data = base.weight.data.float()
                layer.merge(safe_merge=True)
                base.weight.data = base.weight.data.to(dtype)
        self._tuner.unload()
        for name, linear in list(_linear_layers(self.model)):
            if _in_four_bits(linear):
                _put(self.model, name, _dequantised(linear))
        return None


def sketch_adapter(
    model: RevisionForConditionalGeneration, *, method: str, rank: int, targets: Sequence[str]
) -> list[nn.Parameter]:
    """Puts the matrices of an adapter into a model on the meta device, to be counted.

    Args:
        model: changed in place, as by `Adapter`.
        method, rank, targets: as of `Adapter`.

    Returns:
        The weights that the method keeps in four bits; here they are whole.

    Raises:
        ValueError: a target that matches nothing.
    """
    packed: list[Any] = []
    if method == "qlora":
        packed = [_plain_linear(name, linear).weight for name, linear in _linear_layers(model)]
    with torch.device("meta"):
        LoraModel(model, _config(model, method, rank, 1.0, 0.0, targets), _NAME)
    return packed


def _config(
    model: RevisionForConditionalGeneration,
    method: str,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it only
        lora_dropout=dropout,
        target_modules=_targeted(model, targets),
        use_dora=method == "dora",
        task_type="CAUSAL_LM",
    )


def _plain_linear(name: str, layer: nn.Module) -> nn.Linear:
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"adapter.method = qlora: {name} is no plain linear layer; set adapter.method=lora")
    return layer


def _targeted(model: RevisionForConditionalGeneration, targets: Sequence[str]) -> list[str]:
    """Full names of the layers that the targets stand for."""
    names = [name for name, _ in _linear_layers(model)]
    found: set[str] = set()
    for target in targets:
        some = names if target == ALL_LINEAR else [name for name in names if _matches(target, name)]
        if not some:
            short = sorted({name.rsplit(".", 1)[-1] for name in names})
            near = get_close_matches(target, short, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(
                f"adapter.targets = {target}: matches no linear layer of the LLM{hint}; there are "
                f"{', '.join(short[:_SHOWN])}, as in {names[0]}, and {ALL_LINEAR} for all of them"
            )
        found.update(some)
    return sorted(found)


def _matches(target: str, name: str) -> bool:
    if name == target or name.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise ValueError(f"adapter.targets = {target}: is no regular expression ({error})") from error


def _linear_layers(model: RevisionForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers of the decoder, by their names in the model; the output layer is none of them."""
    decoder = model.get_decoder()
    for name, module in model.named_modules():
        if module is decoder:
            prefix = name
            break
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            yield f"{prefix}.{name}", module


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _require_engine(arguments: TrainingArguments, method: str) -> None:
    if arguments.fsdp or (is_deepspeed_zero3_enabled() and method != "lora"):
        engine = "fsdp2" if arguments.fsdp else "zero3"
        raise ValueError(
            f"adapter.method = {method}: does not work under engine.kind={engine}, which keeps weights in pieces; "
            "choose zero2 or ddp, which an adapter's few trained parameters leave room for, or lora under zero3"
        )


def _to_four_bits(model: RevisionForConditionalGeneration, *, device: torch.device, dtype: torch.dtype) -> None:
    """Puts NF4 layers of bitsandbytes in the place of the decoder's linear layers, layer by layer.

    dtype: that they compute in.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            "adapter.method = qlora: needs bitsandbytes, which is not installed (pip install 'revision-mllm[qlora]'); "
            "install it, or set adapter.method=lora"
        ) from error
    try:
        for name, layer in list(_linear_layers(model)):
            linear = _plain_linear(name, layer)
            options: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
            small = bitsandbytes.nn.Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, device="meta", **options
            )
            small.weight = bitsandbytes.nn.Params4bit(linear.weight.data.to(dtype), requires_grad=False, **options)
            small.bias = linear.bias
            _put(model, name, small.to(device))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"adapter.method = qlora: bitsandbytes {bitsandbytes.__version__} cannot quantise on {device} ({reason}); "
            "run it on a CUDA device, or set adapter.method=lora"
        ) from error


def _in_four_bits(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Linear4bit"


def _dequantised(layer: Any) -> nn.Linear:
    """The full layer that a four-bit one computes as, on the CPU."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    full = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    full.weight = nn.Parameter(weight.to(layer.compute_dtype).cpu(), requires_grad=False)
    if layer.bias is not None:
        full.bias = nn.Parameter(layer.bias.detach().cpu(), requires_grad=False)
    return full
