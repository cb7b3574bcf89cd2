"""What the transformer is told about a job, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptEmbeds:
    """An encoded prompt.

    Attributes:
        text_embeds: LLaMA hidden states [1, L, E] of the prompt's tokens, the template's left out.
        text_mask: which of them are valid [1, L] bool, valid ones first.
        pooled_embeds: CLIP's pooled output [1, P].
        cuts: what the encoders did not read of the prompt, in sentences.
    """

    text_embeds: Tensor
    text_mask: Tensor
    pooled_embeds: Tensor
    cuts: tuple[str, ...] = ()


class ConditioningWidths(Protocol):
    """Channels that a transformer expects of its inputs; see :class:`Conditioning`."""

    @property
    def in_channels(self) -> int: ...
    @property
    def text_embed_dim(self) -> int: ...
    @property
    def pooled_projection_dim(self) -> int: ...
    @property
    def image_proj_dim(self) -> int: ...


def blend_prompts(shares: Sequence[tuple[PromptEmbeds, float]]) -> PromptEmbeds:
    """The mean of prompts by their shares; beyond its end a shorter prompt is zero. One prompt comes back as it is."""
    if len(shares) == 1:
        return shares[0][0]
    longest = max((prompt for prompt, _ in shares), key=lambda prompt: prompt.text_embeds.shape[1])
    text = torch.zeros_like(longest.text_embeds)
    pooled = torch.zeros_like(longest.pooled_embeds)
    for prompt, share in shares:
        text[:, : prompt.text_embeds.shape[1]] += share * prompt.text_embeds
        pooled += share * prompt.pooled_embeds
    return PromptEmbeds(text_embeds=text, text_mask=longest.text_mask, pooled_embeds=pooled)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchor:
    """An image that stays in view of the sections after it.

    Attributes:
        latent: [1, C, 1, Y, X], scaled, as the transformer sees it.
        image_embeds: SigLIP tokens [1, I, V].
    """

    latent: Tensor
    image_embeds: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """Embeddings and start latent of one job; widths E, P, V are the checkpoint's.

    Attributes:
        text_embeds: LLaMA embeddings [1, L, E], any L.
        text_mask: [1, L] bool, True for valid tokens, which come first.
        pooled_embeds: CLIP embedding [1, P].
        image_embeds: SigLIP tokens [1, I, V], any I.
        start_latent: [1, C, 1, Y, X], scaled, as the transformer sees it; any even Y and X.
        negative_text_embeds: as ``text_embeds`` for the negative prompt; the three negative fields are given
            if and only if cfg_scale is not 1.
        negative_text_mask: as ``text_mask``.
        negative_pooled_embeds: as ``pooled_embeds``.
        section_prompts: of every section, in generation order, in place of ``text_embeds``, ``text_mask`` and
            ``pooled_embeds``; empty where all sections have these. Equal neighbours are best one object: what a job
            computes once is computed again where the object changes.
        end_latent: as ``start_latent``, of what follows the last frame; None leaves the end open. Only with order
            "inverted".
        given_latents: of a video that is extended, [1, C, T, Y, X] in its order: what comes before the first section
            with order "forward", what comes after the last with "inverted". None or ``end_latent`` is.
        guides: one for each of ``guide_places``: what takes the place of start latent and image embeddings from there on.
    """

    text_embeds: Tensor
    text_mask: Tensor
    pooled_embeds: Tensor
    image_embeds: Tensor
    start_latent: Tensor
    negative_text_embeds: Tensor | None = None
    negative_text_mask: Tensor | None = None
    negative_pooled_embeds: Tensor | None = None
    section_prompts: tuple[PromptEmbeds, ...] = ()
    end_latent: Tensor | None = None
    given_latents: Tensor | None = None
    guides: tuple[Anchor, ...] = ()

    @classmethod
    def of(
        cls,
        prompt: PromptEmbeds,
        negative: PromptEmbeds | None,
        *,
        image_embeds: Tensor,
        start_latent: Tensor,
    ) -> Self:
        """The conditioning of one prompt and, with true guidance, a negative one."""
        return cls(
            text_embeds=prompt.text_embeds,
            text_mask=prompt.text_mask,
            pooled_embeds=prompt.pooled_embeds,
            image_embeds=image_embeds,
            start_latent=start_latent,
            negative_text_embeds=None if negative is None else negative.text_embeds,
            negative_text_mask=None if negative is None else negative.text_mask,
            negative_pooled_embeds=None if negative is None else negative.pooled_embeds,
        )

    @property
    def prompt(self) -> PromptEmbeds:
        """What all sections share unless they have prompts of their own."""
        return PromptEmbeds(
            text_embeds=self.text_embeds, text_mask=self.text_mask, pooled_embeds=self.pooled_embeds
        )

    @property
    def negative(self) -> PromptEmbeds | None:
        """The negative prompt; None unless its three fields are given."""
        embeds, mask, pooled = self.negative_text_embeds, self.negative_text_mask, self.negative_pooled_embeds
        if embeds is None or mask is None or pooled is None:
            return None
        return PromptEmbeds(text_embeds=embeds, text_mask=mask, pooled_embeds=pooled)

    def anchors(self, guide_places: Sequence[int]) -> tuple[Anchor, ...]:
        """The start image and the guides, in video order; latents are fp32 on the CPU."""
        if len(self.guides) != len(guide_places):
            raise InputError(
                f"guides must be as many as guide_places, which are {len(guide_places)}, got {len(self.guides)}"
            )
        start = Anchor(latent=self.start_latent, image_embeds=self.image_embeds)
        return tuple(replace(anchor, latent=anchor.latent.float().cpu()) for anchor in (start, *self.guides))

    def prompts(self, num_sections: int) -> tuple[PromptEmbeds, ...]:
        """The prompt of every section, in generation order."""
        if len(self.section_prompts) not in (0, num_sections):
            raise InputError(
                f"section_prompts must be empty or num_sections = {num_sections}, got {len(self.section_prompts)}"
            )
        return self.section_prompts or (self.prompt,) * num_sections

    def check(self, config: ConditioningWidths, cfg_scale: float) -> None:
        """Raise :class:`InputError` unless every tensor fits ``config`` and the guidance."""
        _check("image_embeds", self.image_embeds, (1, None, config.image_proj_dim))
        _check("start_latent", self.start_latent, (1, config.in_channels, 1, None, None))
        latent = tuple(self.start_latent.shape)
        if any(size % 2 or not size for size in latent[3:]):
            raise InputError(f"start_latent must have even height and width, got {latent[3:]}")
        if self.given_latents is not None and self.end_latent is not None:
            raise InputError("given_latents and end_latent exclude each other, got both")
        if self.end_latent is not None:
            _check("end_latent", self.end_latent, latent)
        if self.given_latents is not None:
            _check("given_latents", self.given_latents, (*latent[:2], None, *latent[3:]))
        for guide in self.guides:
            _check("guides' latent", guide.latent, latent)
            _check("guides' image_embeds", guide.image_embeds, tuple(self.image_embeds.shape))
        _check_text(config, "", self.prompt)
        for prompt in set(self.section_prompts):
            _check_text(config, "section_prompts' ", prompt)
        negative = (self.negative_text_embeds, self.negative_text_mask, self.negative_pooled_embeds)
        names = "negative_text_embeds, negative_text_mask and negative_pooled_embeds must be"
        if cfg_scale == 1.0 and any(tensor is not None for tensor in negative):
            raise InputError(
                f"{names} None at cfg_scale = 1, where no second pass runs; leave them out, or set another cfg_scale"
            )
        if cfg_scale != 1.0:
            if self.negative is None:
                raise InputError(f"{names} given at cfg_scale = {cfg_scale}")
            _check_text(config, "negative_", self.negative)


def _check_text(config: ConditioningWidths, prefix: str, prompt: PromptEmbeds) -> None:
    embeds, mask, pooled = prompt.text_embeds, prompt.text_mask, prompt.pooled_embeds
    _check_shape(f"{prefix}text_embeds", embeds, (1, None, config.text_embed_dim))
    _check_shape(f"{prefix}text_mask", mask, (1, embeds.shape[1]))
    _check_shape(f"{prefix}pooled_embeds", pooled, (1, config.pooled_projection_dim))
    valid = mask[0] != 0
    if not valid[: int(valid.sum())].all() or not valid.any():
        raise InputError(f"{prefix}text_mask must mark valid tokens first, and at least one")
    # What padding tokens hold does not matter.
    _check_finite(f"{prefix}text_embeds", embeds[0, valid.to(embeds.device)])
    _check_finite(f"{prefix}pooled_embeds", pooled)


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    _check_shape(name, tensor, shape)
    _check_finite(name, tensor)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise InputError(f"{name} must be finite, got NaN or infinity; check the encoder that made it")


def _check_shape(name: str, tensor: object, shape: tuple[int | None, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}")
    fits = len(tensor.shape) == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted_text = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{name} must have the shape [{wanted_text}], got {tuple(tensor.shape)}")
