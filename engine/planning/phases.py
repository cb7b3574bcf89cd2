"""The phases of a job as bytes on the device."""

from dataclasses import dataclass

from ..families.family import CodecWork, EncoderShape
from .machine import Machine
from .plan import PhaseBytes
from .planned_job import PlannedJob

# cuBLAS keeps 8 MiB per stream, 32 MiB on Hopper; the allocator rounds large blocks to 2 MiB and leaves gaps.
_LIBRARY_BYTES, _GAP_SHARE = 64 * 2**20, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """One way to run a job.

    Attributes:
        token_chunk: tokens whose MLP activations exist at a time; None for all.
        ring: slots that units pass through; 0 where all are resident.
        num_residents: units that stay on the device while a section is denoised.
        tile: edge of the VAE's tiles in pixels; None is whole pictures.
        is_arena_kept: slots and residents stay while frames are decoded.
    """

    token_chunk: int | None
    ring: int
    num_residents: int
    tile: int | None
    is_arena_kept: bool = False


class Phases:
    """What each phase of ``job`` holds on ``machine``, by the settings that are chosen.

    Attributes:
        job: the job.
        machine: the machine.
        shape: of the step loop.
        slot: bytes of the largest unit.
        num_units: units of the model.
    """

    def __init__(self, job: PlannedJob, machine: Machine) -> None:
        self.job = job
        self.machine = machine
        self.shape = job.denoise_shape(machine)
        self.slot = max(self.shape.weights.units)
        self.num_units = len(self.shape.weights.units)
        self._kept = self.shape.weights.per_step + self.shape.embeds_bytes()
        self._vae = machine.companion_bytes * job.shapes.vae_params
        if machine.is_cpu and not job.is_latents_only:
            # It has no other place to go between two sections.
            self._kept, self._vae = self._kept + self._vae, 0

    def all(self, way: Arrangement) -> tuple[PhaseBytes, ...]:
        """All phases in the order of a job that runs that ``way``."""
        denoise = self.denoise(way.token_chunk, num_residents=way.num_residents, ring=way.ring)
        if self.job.is_latents_only:
            return (self._prepare(), denoise)
        arena = self.slot * (way.ring + way.num_residents) if way.is_arena_kept else 0
        return (
            self._encode_with("text"),
            self._encode_with("image"),
            self._encode(way.tile),
            self._prepare(),
            denoise,
            self.decode(way.tile, arena=arena),
        )

    def work(self, tile: int | None) -> CodecWork:
        """Work of the VAE in tiles of ``tile`` px; None is whole pictures."""
        return self.job.shapes.codec_work(self.job.size, tile, self.machine.companion_bytes)

    def _encode_with(self, reads: str) -> PhaseBytes:
        """The encoders of "text" or "image", one after the other: the one that holds most."""
        phases = (self._encoder(encoder) for encoder in self.job.shapes.encoders if encoder.reads == reads)
        return max(phases, key=lambda phase: phase.total)

    def _encoder(self, encoder: EncoderShape) -> PhaseBytes:
        value = self.machine.companion_bytes
        return self._phase(
            f"{encoder.reads} encode",
            weights=0 if encoder.is_layerwise else value * encoder.num_params,
            slots=value * encoder.layer_params if encoder.is_layerwise else 0,
            activations=encoder.activation_bytes(value),
            note=f"{encoder.depth} layers, one at a time" if encoder.is_layerwise else "",
        )

    def _encode(self, tile: int | None) -> PhaseBytes:
        work = self.work(tile)
        return self._phase(
            "VAE encode",
            weights=self._vae,
            activations=work.encode_bytes(self.job.num_encoded_frames),
            workspace=work.encode_workspace_bytes(self.job.num_encoded_frames),
        )

    def _prepare(self) -> PhaseBytes:
        """What a job computes once, with weights that pass through two slots."""
        shape = self.shape
        return self._phase(
            "prepare",
            weights=self.job.lora_bytes,
            slots=2 * shape.weights.largest_once_layer,
            activations=shape.prepare_bytes(),
            note="modulation table, refined text",
        )

    def denoise(self, token_chunk: int | None, *, num_residents: int, ring: int) -> PhaseBytes:
        """The step loop with the MLP in chunks of ``token_chunk`` tokens."""
        shape = self.shape
        return self._phase(
            "denoise",
            weights=num_residents * self.slot + self.job.lora_bytes,
            slots=ring * self.slot,
            activations=shape.table_bytes() + shape.activation_bytes(token_chunk),
            note=f"{num_residents} of {self.num_units} units resident"
            + (f", ring of {ring}" if ring else ""),
        )

    def decode(self, tile: int | None, *, arena: int = 0) -> PhaseBytes:
        """Decoding a section beside ``arena`` bytes of slots and residents."""
        work, latents = self.work(tile), self.job.num_decoded_latents
        return self._phase(
            "VAE decode",
            weights=self._vae + self.job.lora_bytes,
            slots=arena,
            activations=self.shape.job_table_bytes() + work.decode_bytes(latents),
            workspace=work.decode_workspace_bytes(latents),
            note="whole pictures" if tile is None else f"tiles of {tile} px",
        )

    def _phase(
        self,
        name: str,
        *,
        activations: int,
        weights: int = 0,
        slots: int = 0,
        workspace: int = 0,
        note: str = "",
    ) -> PhaseBytes:
        """A phase with what stays for the whole job, and what libraries, allocator and driver take."""
        libraries = 0 if self.machine.is_cpu else workspace + _LIBRARY_BYTES
        return PhaseBytes(
            name=name,
            weights=self._kept + weights,
            slots=slots,
            activations=activations,
            workspace=activations // _GAP_SHARE + libraries,
            context=self.machine.context,
            note=note,
        )
