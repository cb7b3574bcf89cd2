"""One job from request to frames: encode, sample section by section, decode."""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from ..companions.components import Components, default_order
from ..companions.encoders import Encoders
from ..companions.section_decoder import OrderedDecoder
from ..companions.vae import DecodedFrames, SectionDecoder, VideoVAE, num_leading_frames
from ..device import memory_errors
from ..events import JobEvent, PhaseEvent, PromptSlot
from ..jobs.run import JobRun
from ..media.given import RequestImages, request_order
from ..model.conditioning import Conditioning, PromptEmbeds, blend_prompts
from ..request.config import ORDERS, UNTRAINED_ORDERS, Request, SamplingConfig
from ..request.prompts import PromptTimeline
from ..request.sections import MAX_CLIP_FRAMES, plan_sections
from ..sampling.denoiser import Denoiser, EventHandler, LatentSection
from ..weights.memory import ModelMemory
from .decoding import decode_within, make_decoder
from .encode_images import encode_images
from .frame_filter import FrameFilter, apply_filter

_logger = logging.getLogger(__name__)

T = TypeVar("T")


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
    """One job. Making it checks the request and reads the image; :meth:`sections` does the work.

    Attributes:
        images: what is given, at the size of the video.
        sampling: how the latents are sampled.
        num_frames: frames of the whole video.
        memory: the plan of the job, and its units.
        decoder: joins the sections; None until :meth:`sections` has encoded the request.
        start_latent: of the image, [1, C, 1, Y, X] fp32; None until then.
        frame_filter: every frame passes through it.
    """

    def __init__(
        self,
        request: Request,
        components: Components,
        denoiser: Denoiser,
        memory: ModelMemory,
        frame_filter: FrameFilter | None = None,
    ) -> None:
        self.frame_filter = frame_filter
        self._request = request
        self._components = components
        self._denoiser = denoiser
        profile = components.profile
        # Only "auto" asks what the checkpoint is; the answer may be logged.
        order = request_order(request, lambda: default_order(components.name, profile))
        self.sampling: SamplingConfig = request.sampling(order)
        denoiser.check(self.sampling)
        self._plans = plan_sections(self.sampling)
        self.images = images = RequestImages.load(request, profile.buckets)
        self.num_frames = self.num_leading + self._num_made + (self.num_given if order == "inverted" else 0)
        self.memory = memory.plan(
            self.sampling,
            images.size,
            lora_bytes=denoiser.lora_bytes(self.sampling),
            num_encoded_frames=min(max(self.num_given, 1), MAX_CLIP_FRAMES),
            num_more_frames=self.num_frames - self._num_made,
        )
        denoiser.check_attention(self.sampling, images.size, self.memory.num_condition_tokens)
        self.decoder: SectionDecoder | OrderedDecoder | None = None
        self.start_latent: Tensor | None = None

    @property
    def num_given(self) -> int:
        """Frames of the video that is extended."""
        return 0 if self.images.video is None else self.images.video.num_frames

    @property
    def _num_made(self) -> int:
        return 4 * self.sampling.latent_window_size * self.sampling.num_sections

    @property
    def num_leading(self) -> int:
        """Frames before those of the sections; -3 where the first latent stands for one frame instead of four."""
        has_start = self.images.start is not None
        return num_leading_frames(self.sampling.order, has_start=has_start, num_given_frames=self.num_given)

    def given_frames(self) -> Iterator[tuple[Tensor, int]]:
        """Frames of the video that is extended, uint8 [T, H, W, 3] a few at a time, each with its place."""
        if self.images.video is None:
            return
        place = 0 if self.sampling.order == "forward" else self.num_leading + self._num_made
        for frames in self.images.video.chunks(self.images.size):
            yield apply_filter(self.frame_filter, frames, place), place
            place += len(frames)

    def first_latent_frame(self, section: int) -> int:
        """Place of ``section`` (generation order) in the video; the start latent is 0."""
        return self._plans[section].first_latent_frame

    def sections(
        self,
        encoders: Encoders,
        load_vae: Callable[[], VideoVAE],
        on_event: EventHandler | None = None,
        run: JobRun | None = None,
    ) -> Generator[Section, None, None]:
        """Yield the sections in generation order; closing the iterator cancels the job.

        Args:
            encoders: of text and image.
            load_vae: called in the image phase, after the text encoders have left.
            on_event: called with every event.
            run: what is finished of the job, and takes what is sampled; sections whose frames it has do not come.
        """
        report = on_event or _ignore
        timeline = (self._request if run is None else run.request).prompt_timeline()
        report(self._describe(run, timeline))
        # An earlier job may have left its slots and residents.
        self.memory.make_room()
        num_encoded = 0 if run is None else run.num_encoded
        if num_encoded == self.sampling.num_sections:
            return
        prompts, negative = self._encode_text(encoders, report, timeline)
        report(PhaseEvent(phase="image"))
        vae, conditioning = self._encode_image(encoders, load_vae, prompts, negative)
        self.start_latent = conditioning.start_latent
        self.decoder = decoder = make_decoder(
            vae,
            self.sampling,
            start_latent=None if self.images.start is None else conditioning.start_latent,
            given=conditioning.given_latents,
            num_given_frames=self.num_given,
        )
        if run is not None and num_encoded:
            self._restart(vae, decoder, run, num_encoded)
        sampled = None if run is None else run.sampled
        with memory_errors("prepare"):
            latent_sections = self._denoiser.sample(
                conditioning, self.sampling, on_event, self.memory, sampled
            )
        for index in range(num_encoded, self.sampling.num_sections):
            start = time.perf_counter()
            with memory_errors("denoise"):
                latents = _next_latents(index, latent_sections, run, report)
            denoised = time.perf_counter()
            report(PhaseEvent(phase="decode"))
            yield self._decode(vae, decoder, index, latents, start, denoised)

    def condition(self, encoders: Encoders, load_vae: Callable[[], VideoVAE]) -> Conditioning:
        """Text and image of the request as tensors; nothing is sampled."""
        self.memory.make_room()
        prompts, negative = self._encode_text(encoders, _ignore, self._request.prompt_timeline())
        conditioning = self._encode_image(encoders, load_vae, prompts, negative)[1]
        # One prompt serves samplings of any length.
        is_one = all(prompt is prompts[0] for prompt in prompts)
        return replace(conditioning, section_prompts=()) if is_one else conditioning

    def provisional(self) -> DecodedFrames | None:
        """The frames at the open edge, which the next section changes; None before the first section."""
        found = None if self.decoder is None else self.decoder.provisional()
        return None if found is None else self._filtered(found)

    def _filtered(self, decoded: DecodedFrames) -> DecodedFrames:
        frames = apply_filter(self.frame_filter, decoded.frames, decoded.first_frame)
        return DecodedFrames(frames=frames, first_frame=decoded.first_frame)

    def _restart(
        self, vae: VideoVAE, decoder: SectionDecoder | OrderedDecoder, run: JobRun, num_encoded: int
    ) -> None:
        """Have ``decoder`` stand where an earlier run's sections left it."""
        decode_within(self.memory, vae, lambda: decoder.restart(num_encoded, run.latents))

    def _describe(self, run: JobRun | None, timeline: PromptTimeline) -> JobEvent:
        fps, (image_height, image_width) = self._request.fps, self.images.given_size
        height, width = self.images.size
        return JobEvent(
            order=self.sampling.order,
            num_sections=self.sampling.num_sections,
            num_frames=self.num_frames,
            fps=fps,
            seconds=self.num_frames / fps,
            requested_seconds=self._request.seconds,
            height=height,
            width=width,
            image_height=image_height,
            image_width=image_width,
            num_finished_sections=0 if run is None else run.sampled.num_sections,
            job_dir=None if run is None else run.path,
            prompts=self._prompt_slots(timeline) if len(timeline.stretches) > 1 else (),
            num_given_frames=self.num_given,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """What of the request the published checkpoints were not trained for."""
        notes = []
        if self.images.start is None:
            notes.append("text-to-video: image-to-video models were not trained without a start image")
        if self.sampling.order in UNTRAINED_ORDERS:
            notes.append(f"order {self.sampling.order}: experimental, no published model was trained for it")
        if self.sampling.untrained_schedule is not None:
            notes.append(
                f"schedule {self.sampling.untrained_schedule}: experimental, no published model was trained for it"
            )
        if self.sampling.history_codebook is not None:
            notes.append("history discretisation: experimental, no published model was trained with it")
        if self._request.guide_images:
            notes.append(self._guides_note())
        trained = self._components.profile.order
        if self.sampling.order in ORDERS and trained not in (None, "both", self.sampling.order):
            notes.append(f"order {self.sampling.order}: this model was trained in the {trained} order")
        return tuple(notes)

    def _guides_note(self) -> str:
        """Where the guide images came to stand, in seconds of video."""
        request = self._request
        slots = [
            f"{guide.time:g} s from {request.section_seconds(place):.2f} s on"
            for guide, place in zip(request.guide_images, self.sampling.guide_places, strict=True)
        ]
        return f"guide images: {', '.join(slots)}; no published model was trained to change its start image"

    def _prompt_slots(self, timeline: PromptTimeline) -> tuple[PromptSlot, ...]:
        """The timeline in seconds of video and in the order in which sections are made."""
        made = {section.place: section.index for section in self._plans}
        return tuple(
            PromptSlot(
                text=stretch.text,
                start_seconds=self._request.section_seconds(stretch.first_section),
                end_seconds=self._request.section_seconds(stretch.end_section),
                sections=tuple(made[place] for place in range(stretch.first_section, stretch.end_section)),
            )
            for stretch in timeline.stretches
        )

    def _encode_text(
        self, encoders: Encoders, report: EventHandler, timeline: PromptTimeline
    ) -> tuple[tuple[PromptEmbeds, ...], PromptEmbeds | None]:
        """The prompt of every section in generation order and, with true guidance, the negative prompt."""
        report(PhaseEvent(phase="text"))
        request = self._request
        texts = list(dict.fromkeys(stretch.text for stretch in timeline.stretches))
        negatives = [] if request.cfg_scale == 1.0 else [request.negative_prompt]
        with memory_errors("text"):
            encoded = self.memory.attempt("text", lambda: encoders.encode_prompts([*texts, *negatives]))
        prompts = dict(zip(texts, encoded, strict=False))
        # Sections with the same shares get the same object, for which the engine computes once.
        blended: dict[tuple[tuple[str, float], ...], PromptEmbeds] = {}
        sections = []
        for section in self._plans:
            shares = tuple(timeline.weights(section.place))
            if shares not in blended:
                blended[shares] = blend_prompts([(prompts[text], share) for text, share in shares])
            sections.append(blended[shares])
        return tuple(sections), encoded[-1] if negatives else None

    def _encode_image(
        self,
        encoders: Encoders,
        load_vae: Callable[[], VideoVAE],
        prompts: tuple[PromptEmbeds, ...],
        negative: PromptEmbeds | None,
    ) -> tuple[VideoVAE, Conditioning]:
        def encode() -> tuple[VideoVAE, Conditioning]:
            vae = load_vae()
            vae.use_tiles(self.memory.plan.vae_tile)
            return vae, self._condition(prompts, negative, encoders, vae)

        with memory_errors("image"):
            return self.memory.attempt("image", encode)

    def _condition(
        self,
        prompts: tuple[PromptEmbeds, ...],
        negative: PromptEmbeds | None,
        encoders: Encoders,
        vae: VideoVAE,
    ) -> Conditioning:
        seen = encode_images(self.images, self._request, encoders, vae, self._components.name)
        return Conditioning(
            text_embeds=prompts[0].text_embeds,
            text_mask=prompts[0].text_mask,
            pooled_embeds=prompts[0].pooled_embeds,
            image_embeds=seen.image_embeds,
            start_latent=seen.start_latent,
            negative_text_embeds=None if negative is None else negative.text_embeds,
            negative_text_mask=None if negative is None else negative.text_mask,
            negative_pooled_embeds=None if negative is None else negative.pooled_embeds,
            section_prompts=prompts,
            end_latent=seen.end_latent,
            given_latents=seen.given_latents,
            guides=seen.guides,
        )

    def _decode(
        self,
        vae: VideoVAE,
        decoder: SectionDecoder | OrderedDecoder,
        index: int,
        latents: Tensor,
        start: float,
        denoised: float,
    ) -> Section:
        decoded = self._filtered(decode_within(self.memory, vae, lambda: decoder.push(latents)))
        provisional = self.provisional()
        assert provisional is not None, "a section was pushed"
        timings = {"denoise": denoised - start, "decode": time.perf_counter() - denoised}
        _logger.info(
            "section %d of %d: denoise %.2f s, decode %.2f s",
            index + 1,
            self.sampling.num_sections,
            timings["denoise"],
            timings["decode"],
        )
        return Section(
            index=index,
            frames=decoded.frames,
            first_frame=decoded.first_frame,
            start_seconds=decoded.first_frame / self._request.fps,
            preview_frames=provisional.frames,
            preview_first_frame=provisional.first_frame,
            latents=latents,
            timings=timings,
            memory=_memory(self._denoiser.transformer.device),
        )


def _next_latents(
    index: int, latent_sections: Iterator[LatentSection], run: JobRun | None, report: EventHandler
) -> Tensor:
    """Latents of section ``index``: an earlier run's, or sampled now and kept."""
    if run is not None and index < run.sampled.num_sections:
        return run.latents(index)
    section = next(latent_sections)
    if run is not None:
        report(PhaseEvent(phase="checkpoint"))
        run.keep_latents(section)
    return section.latents


def _memory(device: torch.device) -> dict[str, int]:
    memory = {"rss": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        memory["device_peak"] = torch.cuda.max_memory_allocated(device)
    return memory


def _ignore(event: object) -> None:
    """Nobody listens."""
