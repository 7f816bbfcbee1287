"""What of a dual encoder trains: the heads behind locked towers, or all parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from open_clip import CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import nn

from revision.encoders.openclip_folder import head_parameters


@dataclass(frozen=True)
class TrainedPart:
    """The part of a model that trains, and how its inputs become embeddings.

    Attributes:
        name: as in "trains: ... parameters of <name>".
        model: the whole of it, with the temperature.
        parameters: what trains, by name, without the temperature.
        locked: entries of the model's state that training must leave as they are.
        modules: those that are put into training and evaluation mode.
        image, text: inputs of one side, as in `PairInputs`, to embeddings [n, d], not yet of unit length.
    """

    name: str
    model: CustomTextCLIP
    parameters: dict[str, nn.Parameter]
    locked: frozenset[str]
    modules: tuple[nn.Module, ...]
    image: Callable[[torch.Tensor], torch.Tensor]
    text: Callable[[torch.Tensor], torch.Tensor]

    def training_mode(self, on: bool) -> None:
        """Switches dropout and batch statistics of what trains."""
        for module in self.modules:
            module.train(on)


def heads_of(model: nn.Module) -> TrainedPart:
    """The heads; the towers are locked. Inputs are features of the towers. Raises as `lock_towers`."""
    encoder = lock_towers(model)
    heads = head_parameters(encoder)
    return TrainedPart(
        name="the heads",
        model=encoder,
        parameters=heads,
        locked=frozenset(encoder.state_dict().keys() - heads.keys() - {"logit_scale"}),
        modules=(encoder.visual.head, encoder.text.proj),
        image=encoder.visual.head,
        text=encoder.text.proj,
    )


def whole(model: nn.Module) -> TrainedPart:
    """All parameters but the temperature, and the bias of the logits, which CLIP's loss does not see.

    Inputs are preprocessed pictures [n, 3, height, width] and token ids [n, context_length].

    Raises:
        ValueError: not a CustomTextCLIP.
    """
    if not isinstance(model, CustomTextCLIP):
        raise ValueError(
            f"contrast.init holds a {type(model).__name__}; contrast.train=all needs an open_clip CustomTextCLIP: "
            "set custom_text to true in its model_cfg"
        )
    model.requires_grad_(True)
    apart = {"logit_scale", "logit_bias"}
    return TrainedPart(
        name="the model",
        model=model,
        parameters={name: value for name, value in model.named_parameters() if name not in apart},
        locked=frozenset(),
        modules=(model,),
        image=model.encode_image,
        text=model.encode_text,
    )


def lock_towers(model: nn.Module) -> CustomTextCLIP:
    """Freezes both towers with open_clip's own locks, normalisation statistics included.

    Returns:
        The same model; its head parameters are all that still requires gradients.

    Raises:
        ValueError: not a CustomTextCLIP of a timm and a Hugging Face tower with a head each.
    """
    heads = head_parameters(model)
    if (
        not isinstance(model, CustomTextCLIP)
        or not isinstance(model.visual, TimmModel)
        or not isinstance(model.text, HFTextEncoder)
        or {name.split(".")[0] for name in heads} != {"visual", "text"}
    ):
        raise ValueError(
            f"contrast.init holds a {type(model).__name__} whose heads cannot be trained alone; it needs an open_clip "
            "CustomTextCLIP with a timm image tower (timm_proj) and a Hugging Face text tower (hf_proj_type)"
        )
    model.requires_grad_(True)
    model.lock_image_tower()
    model.lock_text_tower(unlocked_layers=0)
    model.logit_scale.requires_grad_(False)
    model.eval()
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable == heads.keys(), trainable ^ heads.keys()
    return model


def project(part: TrainedPart, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of n pictures and m texts to unit rows [n, d] and [m, d]."""
    normalize = nn.functional.normalize
    return normalize(part.image(images), dim=-1), normalize(part.text(texts), dim=-1)
