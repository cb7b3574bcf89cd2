"""What a job computes once for its prompt and image, and again where LoRAs, prompt or image change between sections."""

import bisect
from functools import partial

import torch
from torch import Tensor

from ..checkpoints.lora import ActiveLoras
from ..events import EventHandler, PhaseEvent
from ..families.transformer_base import PreparedJob, Transformer
from ..model.conditioning import Anchor, Conditioning, PromptEmbeds
from ..request.config import SamplingConfig
from ..request.sections import SectionPlan
from ..weights.memory import JobMemory, UnplannedMemory

SectionMemory = JobMemory | UnplannedMemory


class Preparation:
    """What the section at work samples with.

    Attributes:
        transformer: with the LoRAs at work.
        invariants: of the conditional branch and, with true guidance, of the negative one.
        guide: latent [1, C, 1, Y, X] that takes the place of the start latent; None where that is in view.
    """

    def __init__(
        self,
        transformer: Transformer,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        sigmas: Tensor,
        loras: list[ActiveLoras],
        memory: SectionMemory,
        report: EventHandler,
    ) -> None:
        """Nothing is computed before the first :meth:`settle`; ``loras`` are those at work in every section."""
        self.transformer = self._base = transformer
        self.invariants: list[PreparedJob] = []
        self._conditioning = conditioning
        self._sampling = sampling
        self._timesteps = self._rounded(sigmas[:-1] * 1000)
        self._loras = loras
        self._prompts = conditioning.prompts(sampling.num_sections)
        self._anchors = conditioning.anchors(sampling.guide_places)
        self._memory = memory
        self._report = report
        self._section: SectionPlan | None = None

    @property
    def guide(self) -> Tensor | None:
        assert self._section is not None, "a section is settled"
        anchor = self._anchor(self._section)
        return None if anchor is self._anchors[0] else anchor.latent

    def settle(self, section: SectionPlan) -> None:
        """Have what ``section`` samples with."""
        before, self._section = self._section, section
        loras, prompt, anchor = (
            self._loras[section.index],
            self._prompts[section.index],
            self._anchor(section),
        )
        is_same = before is not None and (
            self._loras[before.index] == loras and self._prompts[before.index] is prompt
        )
        if before is not None and is_same and self._anchor(before) is anchor:
            return
        if not is_same:
            # There may not be room for the old and the new LoRAs, nor for the old and the new tables.
            self.transformer, self.invariants = self._base, []
        self._report(PhaseEvent(phase="prepare"))
        # Nor for units beside what is computed once.
        self._memory.make_room()
        work = partial(self._look_at, anchor) if is_same else partial(self._prepare, loras, prompt, anchor)
        self._memory.attempt("prepare", work)

    def _anchor(self, section: SectionPlan) -> Anchor:
        return self._anchors[bisect.bisect(self._sampling.guide_places, section.place)]

    @torch.inference_mode()
    def _look_at(self, anchor: Anchor) -> None:
        """Have another image in view; nothing else depends on it."""
        vision = self.transformer.project_image(anchor.image_embeds)
        self.invariants = [job.with_image(vision) for job in self.invariants]

    @torch.inference_mode()
    def _prepare(self, loras: ActiveLoras, prompt: PromptEmbeds, anchor: Anchor) -> None:
        transformer = self._base.with_loras(loras)
        guidance = None
        if transformer.config.guidance_embeds:
            scale = torch.tensor(self._sampling.guidance_scale * 1000, dtype=torch.float32)
            guidance = self._rounded(scale).item()
        vision = transformer.project_image(anchor.image_embeds)
        # Conditioning.check has seen to it that there is one with true guidance, and none without.
        negative = self._conditioning.negative
        prompts = [prompt] if negative is None else [prompt, negative]
        self.invariants = [
            transformer.prepare_job(
                self._timesteps, guidance, text.text_embeds, text.text_mask, text.pooled_embeds, vision
            )
            for text in prompts
        ]
        self.transformer = transformer

    def _rounded(self, values: Tensor) -> Tensor:
        """Timesteps and guidance as the model was given them: bf16 values wherever activations are 16 bit."""
        return values if self._base.dtype == torch.float32 else values.to(torch.bfloat16).float()
