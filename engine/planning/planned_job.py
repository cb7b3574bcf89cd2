"""The job that a plan is made for."""

from dataclasses import dataclass, replace

from ..families.framepack.denoise_bytes import (
    DenoiseShape,
    Precision,
    find_precision,
    packed_sequence,
    unit_bytes,
)
from ..families.framepack.shapes import MAX_PROMPT_TOKENS, ModelShapes
from ..request.config import UNTRAINED_ORDERS, SamplingConfig
from ..request.sections import most_tail_frames
from .machine import Machine

# A smaller model is read from its checkpoint in a moment; others are worth a store on the disk.
_STORED_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """One job, as far as its memory and time depend on it.

    Attributes:
        shapes: the model.
        sampling: the sections and steps.
        size: (height, width) in pixels.
        precision: of the units.
        compute_dtype: of activations, as in a configuration.
        attention: as in a configuration.
        vae_tiles: True allows tiles only, False whole pictures only, None what fits.
        tile_choices: tiles that the VAE may have, in pixels, whatever ``vae_tiles`` says; None leaves it to that.
        num_text_tokens: tokens of the prompt; the most that a prompt may have if not known.
        num_encoded_frames: of the longest clip that the VAE encodes: 1 for images alone.
        num_more_frames: of the video, besides four for each latent of its sections: the start image is 1, without it
            the first latent stands for one frame alone, a given video has its own.
        lora_bytes: of the LoRAs on the device.
        has_store: the units come from a store; None where that follows from their size.
        is_latents_only: conditioning comes as tensors, latents go out: neither encoders nor VAE run.
    """

    shapes: ModelShapes
    sampling: SamplingConfig
    size: tuple[int, int]
    precision: str
    compute_dtype: str = "auto"
    attention: str = "auto"
    vae_tiles: bool | None = None
    tile_choices: tuple[int | None, ...] | None = None
    num_text_tokens: int = MAX_PROMPT_TOKENS
    num_encoded_frames: int = 1
    num_more_frames: int = 1
    lora_bytes: int = 0
    has_store: bool | None = None
    is_latents_only: bool = False

    def denoise_shape(self, machine: Machine) -> DenoiseShape:
        """Of the step loop."""
        config = self.shapes.transformer
        auto = "fp32" if machine.is_cpu else "bf16"
        dtype = auto if self.compute_dtype == "auto" else self.compute_dtype
        sequence = packed_sequence(
            config,
            self.size,
            self.sampling.latent_window_size,
            self.shapes.image_encoder.num_tokens,
            self.num_text_tokens,
            # A section between two known ones also sees what is ahead.
            num_clean=3 if self.sampling.order in UNTRAINED_ORDERS else 2,
        )
        schedule = self.sampling.untrained_schedule
        if schedule is not None:
            latents = self.size[0] // 8, self.size[1] // 8
            num_tail_frames = most_tail_frames(self.sampling, schedule)
            sequence = replace(sequence, clean=schedule.num_context_tokens(latents, num_tail_frames))
        return DenoiseShape(
            config=config,
            precision=self._precision(machine, dtype),
            sequence=sequence,
            num_steps=self.sampling.num_steps,
            num_branches=1 if self.sampling.cfg_scale == 1.0 else 2,
            step_cache=self.sampling.step_cache,
            attention=self._attention(),
        )

    def is_stored(self, machine: Machine) -> bool:
        """Whether the units come from a store."""
        if self.has_store is not None:
            return self.has_store
        return self._unit_bytes(machine) >= _STORED_BYTES

    def needs_store(self, machine: Machine) -> bool:
        """Whether the units are kept in a store: they are large, or more than the device may hold."""
        return self._unit_bytes(machine) >= min(_STORED_BYTES, machine.vram - machine.context)

    def _unit_bytes(self, machine: Machine) -> int:
        return sum(unit_bytes(self.shapes.transformer, self.denoise_shape(machine).precision))

    def _precision(self, machine: Machine, dtype: str) -> Precision:
        """Of the units; fp8 weights are expanded where the card has no products in fp8."""
        precision = find_precision(self.precision, dtype)
        if self.precision == "fp8" and (machine.is_cpu or machine.card.fp8 is None or dtype != "bf16"):
            return replace(precision, is_quantized=False, is_expanded=True)
        return precision

    def _attention(self) -> str:
        """Which memory the attention takes: in an int8 job "auto" may become any."""
        if self.attention == "auto" and self.precision == "int8":
            return "either"
        return "int8" if self.attention.startswith("int8") else "float"

    @property
    def num_condition_tokens(self) -> int:
        """Tokens of image and prompt, at most."""
        return self.shapes.image_encoder.num_tokens + self.num_text_tokens

    @property
    def num_decoded_latents(self) -> int:
        """Latent frames of the largest decode: a section, its neighbour, the start latent."""
        return 2 * self.sampling.latent_window_size + 1
