"""The job that a plan is made for."""

from dataclasses import dataclass, replace

from ..families.family import ModelSizes, StepSizes
from ..model.precision import Precision, find_precision
from ..request.config import SamplingConfig
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
        num_text_tokens: tokens of the prompt; None for the most that a prompt may have.
        num_encoded_frames: of the longest clip that the VAE encodes: 1 for images alone.
        num_source_pixels: of a frame of the video that is extended, in its file.
        num_more_frames: of the video, besides four for each latent of its sections: the start image is 1, without it
            the first latent stands for one frame alone, a given video has its own.
        lora_bytes: of the LoRAs on the device.
        has_store: the units come from a store; None where that follows from their size.
        is_latents_only: conditioning comes as tensors, latents go out: neither encoders nor VAE run.
    """

    shapes: ModelSizes
    sampling: SamplingConfig
    size: tuple[int, int]
    precision: str
    compute_dtype: str = "auto"
    attention: str = "auto"
    vae_tiles: bool | None = None
    tile_choices: tuple[int | None, ...] | None = None
    num_text_tokens: int | None = None
    num_encoded_frames: int = 1
    num_source_pixels: int = 0
    num_more_frames: int = 1
    lora_bytes: int = 0
    has_store: bool | None = None
    is_latents_only: bool = False

    def denoise_shape(self, machine: Machine) -> StepSizes:
        """What bytes and time of the step loop depend on."""
        auto = "fp32" if machine.is_cpu else "bf16"
        dtype = auto if self.compute_dtype == "auto" else self.compute_dtype
        # The planner counts one phase a section, which is all that the families have.
        (phase,) = self.shapes.phases(
            self.sampling,
            self.size,
            self._precision(machine, dtype),
            attention=self._attention(),
            num_text_tokens=self.num_text_tokens,
        )
        return phase

    def is_stored(self, machine: Machine) -> bool:
        """Whether the units come from a store."""
        if self.has_store is not None:
            return self.has_store
        return self._unit_bytes(machine) >= _STORED_BYTES

    def needs_store(self, machine: Machine) -> bool:
        """Whether the units are kept in a store: they are large, or more than the device may hold."""
        return self._unit_bytes(machine) >= min(_STORED_BYTES, machine.vram - machine.context)

    def _unit_bytes(self, machine: Machine) -> int:
        return sum(self.denoise_shape(machine).weights.units)

    def _precision(self, machine: Machine, dtype: str) -> Precision:
        """The precision of the units; fp8 weights are expanded where the card has no products in fp8."""
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
    def num_decoded_latents(self) -> int:
        """Latent frames of the largest decode: a section, its neighbour, the start latent."""
        return 2 * self.sampling.latent_window_size + 1
