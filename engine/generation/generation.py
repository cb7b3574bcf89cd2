"""One job from request to frames: encode, sample section by section, decode."""

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import psutil
import torch
from torch import Tensor

from ..companions.vae import DecodedFrames
from ..device import memory_errors
from ..events import EventHandler, NoteEvent, PhaseEvent
from ..jobs.run import JobRun, UnkeptRun
from ..model.attention import SelfAttention
from ..model.attention_backends import AttentionShape
from ..model.conditioning import Conditioning, PromptEmbeds, blend_prompts
from ..request.config import Request
from ..weights.memory import JobMemory
from .decoding import Decoder, decode_within, filter_decoded, make_decoder
from .encode_images import encode_images
from .frame_filter import apply_filter
from .inputs import JobInputs
from .loaded_model import LoadedModel
from .numerics import Numerics, settle_numerics

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """One finished section and the frames that became final with it.

    Joined by ``first_frame``, the frames of all sections are the video: 4 * window * n + 1 frames.

    Attributes:
        index: position in generation order, from 0.
        frames: uint8 [T, H, W, 3] in video order; may be none, for the frames at an open edge stay provisional
            until the next section is blended in.
        first_frame: place of the first of them in the video.
        start_seconds: the same in seconds.
        preview_frames: uint8 [P, H, W, 3], the provisional ones.
        preview_first_frame: place of the first of them.
        latents: [1, C, window, Y, X] fp32.
        timings: seconds of "denoise" and "decode".
        memory: bytes: "rss" of the process and, on CUDA, "device_peak" so far.
    """

    index: int
    frames: Tensor
    first_frame: int
    start_seconds: float
    preview_frames: Tensor
    preview_first_frame: int
    latents: Tensor
    timings: Mapping[str, float]
    memory: Mapping[str, int]


class Generation:
    """One run of a job, from its inputs to frames. Nothing of it is left when the run is over.

    Attributes:
        inputs: what the job is made from.
        memory: the plan of the job, and its units.
        numerics: how it is computed; names its attention once that is chosen.
        changes: in sentences, which numerics and versions are others than earlier sections of the job were made with.
        cuts: in sentences, what the encoders did not read of its prompts; known once they are encoded.
        decoder: joins the sections; None until :meth:`sections` has encoded the request.
        start_latent: of the image, [1, C, 1, Y, X] fp32; None until then.
    """

    def __init__(self, inputs: JobInputs, memory: JobMemory, model: LoadedModel, numerics: Numerics) -> None:
        self.inputs = inputs
        self.memory = memory
        self.numerics = numerics
        self.changes: tuple[str, ...] = ()
        self.cuts: list[str] = []
        self.decoder: Decoder | None = None
        self.start_latent: Tensor | None = None
        self.model = model

    def given_frames(self) -> Iterator[tuple[Tensor, int]]:
        """Frames of the video that is extended, uint8 [T, H, W, 3] a few at a time, each with its place."""
        for frames, place in self.inputs.given_frames():
            yield apply_filter(self.model.frame_filter, frames, place), place

    def sections(self, report: EventHandler, run: JobRun | UnkeptRun) -> Generator[Section, None, None]:
        """Yield the sections in generation order; closing the iterator cancels the job.

        Args:
            report: called with every event.
            run: what is finished of the job, and takes what is sampled; sections whose frames it has do not come.
        """
        num_sampled, num_sections = run.sampled.num_sections, self.inputs.sampling.num_sections
        report(
            self.inputs.describe(
                run.request, num_finished_sections=num_sampled, job_dir=run.path, notes=self.changes
            )
        )
        # An earlier job may have left its slots and residents.
        self.memory.make_room()
        if run.num_encoded == num_sections:
            return
        conditioning = self._encode(run.request, report)
        decoder = self._open_decoder(conditioning, run)
        with memory_errors("prepare"):
            sampled = self.model.denoiser.sample(
                conditioning, self.inputs.sampling, report, self.memory, run.sampled, self._choose_attention
            )
        for index in range(run.num_encoded, num_sections):
            start = time.perf_counter()
            with memory_errors("denoise"):
                latents = (
                    run.latents(index) if index < num_sampled else run.keep_latents(next(sampled), report)
                )
            denoised = time.perf_counter()
            report(PhaseEvent(phase="decode"))
            yield self._decode(decoder, index, latents, start, denoised)

    def condition(self) -> Conditioning:
        """Text and image of the request as tensors; nothing is sampled."""
        self.memory.make_room()
        conditioning = self._encode(self.inputs.request, ignore)
        # One prompt serves samplings of any length.
        is_one = len(set(conditioning.section_prompts)) == 1
        return replace(conditioning, section_prompts=()) if is_one else conditioning

    def provisional(self) -> DecodedFrames | None:
        """The frames at the open edge, which the next section changes; None before the first section."""
        found = None if self.decoder is None else self.decoder.provisional()
        return None if found is None else filter_decoded(self.model.frame_filter, found)

    def metadata(self) -> dict[str, object]:
        """What the video says of its making."""
        return {**self.inputs.metadata(self.model, self.numerics), "prompt_cuts": self.cuts}

    def _choose_attention(self, shape: AttentionShape) -> SelfAttention:
        made = replace(self.model.attention, name=self.numerics["attention"]).make(shape)
        self.numerics["attention"] = made.name
        return made

    def _open_decoder(self, conditioning: Conditioning, run: JobRun | UnkeptRun) -> Decoder:
        """The decoder, which stands where an earlier run's sections left it."""
        self.start_latent = conditioning.start_latent
        self.decoder = decoder = make_decoder(
            self.model.vae,
            self.inputs.sampling,
            start_latent=None if self.inputs.images.start is None else conditioning.start_latent,
            given=conditioning.given_latents,
            num_leading=self.inputs.num_leading,
        )
        if run.num_encoded:
            decode_within(self.memory, self.model.vae, lambda: decoder.restart(run.num_encoded, run.latents))
        return decoder

    def _encode(self, asked: Request, report: EventHandler) -> Conditioning:
        """Prompts, then images: the text encoders have left when the VAE comes."""
        report(PhaseEvent(phase="text"))
        with memory_errors("text"):
            prompts, negative = self.memory.attempt("text", lambda: self._encode_text(asked, report))
        report(PhaseEvent(phase="image"))

        def encode() -> Conditioning:
            self.model.vae.use_tiles(self.memory.plan.vae_tile)
            return encode_images(self.inputs, self.model, prompts, negative)

        with memory_errors("image"):
            return self.memory.attempt("image", encode)

    def _encode_text(
        self, asked: Request, report: EventHandler
    ) -> tuple[tuple[PromptEmbeds, ...], PromptEmbeds | None]:
        """The prompt of every section in generation order and, with true guidance, the negative prompt."""
        timeline = asked.prompt_timeline()
        self.cuts.clear()
        texts = list(dict.fromkeys(stretch.text for stretch in timeline.stretches))
        negatives = [] if asked.cfg_scale == 1.0 else [asked.negative_prompt]
        encoded = self.model.encoders.encode_prompts([*texts, *negatives])
        prompts = dict(zip(texts, encoded, strict=False))
        for text, embeds in zip([*texts, *negatives], encoded, strict=True):
            for cut in embeds.cuts:
                self.cuts.append(f"{cut}: {text[:40]!r} ..." if len(encoded) > 1 else cut)
        for cut in self.cuts:
            report(NoteEvent(text=cut))
        # Sections with the same shares get the same object, for which the engine computes once.
        blended: dict[tuple[tuple[str, float], ...], PromptEmbeds] = {}
        sections = []
        for section in self.inputs.sections:
            shares = tuple(timeline.weights(section.place))
            if shares not in blended:
                blended[shares] = blend_prompts([(prompts[text], share) for text, share in shares])
            sections.append(blended[shares])
        return tuple(sections), encoded[-1] if negatives else None

    def _decode(
        self, decoder: Decoder, index: int, latents: Tensor, start: float, denoised: float
    ) -> Section:
        decoded = decode_within(self.memory, self.model.vae, lambda: decoder.push(latents))
        final = filter_decoded(self.model.frame_filter, decoded)
        provisional = self.provisional()
        assert provisional is not None, "a section was pushed"
        timings = {"denoise": denoised - start, "decode": time.perf_counter() - denoised}
        _logger.info(
            "section %d of %d: denoise %.2f s, decode %.2f s",
            index + 1,
            self.inputs.sampling.num_sections,
            timings["denoise"],
            timings["decode"],
        )
        return Section(
            index=index,
            frames=final.frames,
            first_frame=final.first_frame,
            start_seconds=final.first_frame / self.inputs.request.fps,
            preview_frames=provisional.frames,
            preview_first_frame=provisional.first_frame,
            latents=latents,
            timings=timings,
            memory=_memory(self.model.device),
        )


def open_generation(
    request: Request, model: LoadedModel, wanted: Mapping[str, object] = MappingProxyType({})
) -> Generation:
    """Check ``request``, read what it names and plan it; its numerics are those that are ``wanted`` where they can be.

    Raises:
        BudgetError: it does not fit.
        DeviceError: the configured attention does not run at its size.
    """
    inputs = JobInputs.read(request, model)
    memory = inputs.plan(model)
    shape = model.denoiser.attention_shape(inputs.sampling, inputs.images.size, memory.num_condition_tokens)
    return Generation(inputs, memory, model, settle_numerics(model, inputs.sampling, shape, wanted))


def generate_sections(
    request: Request, model: LoadedModel, on_event: EventHandler
) -> Generator[Section, None, None]:
    """The sections of a job that keeps nothing; the request is checked at once."""
    job = open_generation(request, model)
    return job.sections(on_event, UnkeptRun(job.inputs.request, {}))


def _memory(device: torch.device) -> dict[str, int]:
    memory = {"rss": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        memory["device_peak"] = torch.cuda.max_memory_allocated(device)
    return memory


def ignore(event: object) -> None:
    """Drop an event: the default where the caller gives no ``on_event``."""
