"""The multimodal LLM: any causal LM of transformers, a projector from the sphere, and K visual tokens a picture.

Shapes: B sequences, L positions, H hidden size of the LLM, N pictures, d dimension of the sphere, K visual tokens.
"""

from __future__ import annotations

from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import set_zero3_state
from transformers.utils.generic import can_return_tuple

from .configuration_revision import RevisionConfig, copy_code
from .language_revision import add_image_token, load_language_model, token_spread
from .loss_revision import Shaping, is_whole_linear, output_loss

IGNORED = -100  # label of a position that nothing is learned from
# How transformers calls keys and values of earlier positions, in arguments and outputs.
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24.0.dev0") else "past_key_values"


class RevisionProjector(nn.Module):
    """Unit vectors to visual tokens (ReVision v3, App. H.2: a 2-layer MLP with GELU).

    In: [N, d]. Out: [N, K, H], K different tokens ("slots") or K views of one ("repeat": projected once, expanded).
    It computes in the type of its own weights, float32 unless an engine decides otherwise, under autocast too: it is a
    small part of the cost, and all that stage 1 learns.
    """

    def __init__(self, config: RevisionConfig) -> None:
        super().__init__()
        hidden = config.text_config.hidden_size
        self.num_visual_tokens = config.num_visual_tokens
        self.slots = config.num_visual_tokens if config.visual_tokens == "slots" else 1
        self.input_scale = config.input_scale
        self.output_std = config.output_std
        widths = [config.embed_dim, *[config.projector_hidden_size] * (config.projector_depth - 1), self.slots * hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.norm = nn.LayerNorm(hidden) if config.output_norm else None

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """[N, d] to [N, K, H]."""
        dtype = next(self.parameters()).dtype
        with torch.autocast(embeds.device.type, enabled=False):
            tokens = self.layers(embeds.to(dtype) * self.input_scale).view(len(embeds), self.slots, -1)
            if self.norm is not None:
                tokens = self.norm(tokens) * self.output_std
        return tokens.expand(-1, self.num_visual_tokens, -1)


class RevisionForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Reads messages in which each picture is one embedding of a dual encoder."""

    config_class = RevisionConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keep_in_fp32_modules_strict = ["projector"]  # noqa: RUF012
    accepts_loss_kwargs = True

    def __init__(self, config: RevisionConfig) -> None:
        super().__init__(config)
        # First, since transformers takes a model's dtype from its first parameter: it must be the LLM's.
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.projector = RevisionProjector(config)
        self.shaping = Shaping.of(config.text_config)
        self.fused_loss: Any = None  # (output layer, hidden [n, H], targets [n]) -> sum; set by training on a GPU
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights, for the projector; the LLM's own come from its checkpoint."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_language_model(
        cls,
        llm: str,
        *,
        embed_dim: int,
        num_visual_tokens: int,
        visual_tokens: str,
        projector_depth: int = 2,
        projector_hidden_size: int | None = None,
        input_scale: float | None = None,
        output_norm: bool = True,
        table_multiple: int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> tuple[RevisionForConditionalGeneration, Any]:
        """A pretrained LLM behind a fresh projector.

        The image token is added to the tokenizer. Where its id lies beyond the embedding table the table grows, by rows
        that are the mean of the others; every other row is left as it was. Visual tokens take on the spread of what
        the LLM's embedding layer puts out, in which the scale of Gemma's is contained.

        Args:
            llm: folder or hub name of a causal LM with its tokenizer.
            embed_dim: d of the sphere.
            num_visual_tokens, visual_tokens, projector_depth, output_norm: as in `RevisionConfig`.
            projector_hidden_size: None: the LLM's hidden size.
            input_scale: None: sqrt(d).
            table_multiple: of which the rows of a table that has to grow become a multiple; None: as few as will do.
            dtype: of the LLM's weights.
            seed: of the projector's weights.

        Returns:
            The model and its tokenizer.

        Raises:
            ValueError: the LLM cannot be read.
        """
        language_model, tokenizer = load_language_model(llm, dtype)
        output_std = token_spread(language_model)  # before rows of our own
        image_token_id = add_image_token(language_model, tokenizer, multiple=table_multiple)
        hidden = language_model.config.hidden_size
        config = RevisionConfig(
            text_config=language_model.config,
            embed_dim=embed_dim,
            num_visual_tokens=num_visual_tokens,
            visual_tokens=visual_tokens,
            projector_depth=projector_depth,
            projector_hidden_size=hidden if projector_hidden_size is None else projector_hidden_size,
            input_scale=embed_dim**0.5 if input_scale is None else input_scale,
            output_norm=output_norm,
            output_std=output_std,
            image_token_id=image_token_id,
            dtype=dtype,
        )
        # Shapes only: neither an LLM's worth of memory nor of random numbers, and nothing for ZeRO-3 to partition.
        with set_zero3_state(), torch.device("meta"):
            model = cls(config)
        model.language_model = language_model
        model.generation_config = language_model.generation_config
        model.projector.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.projector.apply(model._init_weights)
        return model, tokenizer

    def save_pretrained(
        self, save_directory: str | PathLike[Any], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers, and with the code beside the weights, so that `trust_remote_code` needs no package."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            copy_code(Path(save_directory))

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LLM's output layer."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The LLM without its output layer."""
        return self.language_model.get_decoder()

    def embed_inputs(self, input_ids: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings with the visual positions filled in.

        Args:
            input_ids: int64 [B, L].
            image_embeds: [N, d] in the order of the image tokens, or None.

        Returns:
            [B, L, H] in the LLM's type. While training, the projector takes part even in a batch without a picture:
            no rank of a distributed engine may wait for a gradient that never comes.

        Raises:
            ValueError: image tokens and embeddings do not match.
        """
        inputs = self.get_input_embeddings()(input_ids)
        visual = input_ids == self.config.image_token_id
        pictures = 0 if image_embeds is None else len(image_embeds)
        wanted = int(visual.sum())
        if wanted != pictures * self.config.num_visual_tokens:
            raise ValueError(
                f"input_ids has {wanted} image tokens, but image_embeds has {pictures} pictures of "
                f"{self.config.num_visual_tokens} tokens each; give one embedding for each <image>, and let the "
                "processor expand it"
            )
        if image_embeds is None or pictures == 0:
            if self.training:
                unused = self.projector(inputs.new_zeros(1, self.config.embed_dim))
                inputs = inputs + 0.0 * unused.sum().to(inputs.dtype)
            return inputs
        tokens = self.projector(image_embeds.to(inputs.device)).to(inputs)  # which may lie on another GPU than it
        return inputs.masked_scatter(visual[..., None], tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        image_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        prefix_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass.

        Args:
            input_ids: int64 [B, L]; each picture takes K image tokens.
            image_embeds: [N, d] unit vectors in the order of their tokens.
            position_ids: int64 [B, L]. Where they start again at 0 within a row, other samples begin: each sees only
                itself, provided that there is no attention_mask.
            cache, past_key_values: of earlier positions; the second is what transformers before 5.24 calls the first.
            labels: int64 [B, L], -100 where nothing is learned; position i is predicted from i - 1.
            logits_to_keep: without labels, the last so many positions (0: all), or their indices.
            num_items_in_batch: labels in the whole accumulated batch of all ranks; the loss is the sum over labels
                divided by it. None: by the labels of this batch.
            prefix_ids: int64 [P], tokens that come before each row: computed once for all of them. None is an image
                token; an attention_mask covers them too, [B, P + L].

        Returns:
            `loss` where there are labels; then logits are those of the labelled positions only, [labels, V], or None
            where they were computed in chunks or never (`loss_revision`). Without labels, logits [B, L', V].
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward needs input_ids or inputs_embeds; give one of them")
            inputs_embeds = self.embed_inputs(input_ids, image_embeds)
        past = past_key_values if cache is None else cache
        if prefix_ids is not None:
            if past is not None:
                raise ValueError("forward takes prefix_ids or earlier keys and values, not both; leave one of them out")
            past = self._prefix_cache(prefix_ids, rows=len(inputs_embeds))
        if labels is None:
            return self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **{CACHE: past},
                **kwargs,
            )
        hidden = self.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **{CACHE: past},
            **kwargs,
        ).last_hidden_state
        targets = labels[:, 1:]
        learned = targets != IGNORED
        head, inputs, wanted = self.get_output_embeddings(), hidden[:, :-1][learned], targets[learned]
        logits = None
        if self.fused_loss is not None and self.shaping.is_plain and is_whole_linear(head) and len(wanted) > 0:
            total = self.fused_loss(head, inputs, wanted)
        else:
            total, logits = output_loss(head, inputs, wanted.to(inputs.device), self.shaping)
        items = learned.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / items, logits=logits)

    def _prefix_cache(self, prefix_ids: torch.Tensor, rows: int) -> Any:
        """Keys and values of tokens, with their gradients, for so many rows."""
        cache = self.get_decoder()(input_ids=prefix_ids[None], use_cache=True)[CACHE]
        cache.batch_repeat_interleave(rows)
        return cache

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pictures go in with the first step only; afterwards they are in the cache."""
        image_embeds = kwargs.pop("image_embeds", None)
        parent: Any = super()
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        cache = kwargs.get(CACHE)
        inputs["image_embeds"] = image_embeds if cache is None or cache.get_seq_length() == 0 else None
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        image_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Beams and samples: all pictures of a sequence are repeated together, as the sequence is."""
        parent: Any = super()
        expanded, kwargs = parent._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if image_embeds is not None and input_ids is not None:
            pictures = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.num_visual_tokens
            groups = image_embeds.split(pictures.tolist())
            image_embeds = torch.cat([group for group in groups for _ in range(expand_size)])
        return expanded, {**kwargs, "image_embeds": image_embeds}
