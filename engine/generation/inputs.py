"""A request with everything that it names found and read; nothing is planned yet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from ..events import JobEvent, PromptSlot
from ..jobs.metadata import video_metadata
from ..media.given import RequestImages, request_order
from ..request.config import ORDERS, UNTRAINED_ORDERS, Request, SamplingConfig
from ..request.sections import MAX_CLIP_FRAMES, SectionPlan, plan_sections
from ..weights.memory import JobMemory
from .loaded_model import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobInputs:
    """What a job is made from.

    Attributes:
        request: as asked for, with its LoRAs, video and codebook by absolute paths: another process finds them too.
        sampling: how the latents are sampled.
        images: what is given, at the size of the video.
        sections: in generation order.
        trained_order: of the model, see :class:`ModelProfile`.
    """

    request: Request
    sampling: SamplingConfig
    images: RequestImages
    sections: tuple[SectionPlan, ...]
    trained_order: str | None

    @classmethod
    def read(cls, request: Request, model: LoadedModel) -> Self:
        """Check ``request`` against the model and read its images and LoRAs.

        Raises:
            InputError: an image cannot be used.
            ConfigError: the step cache cannot work with the model, or a LoRA is missing.
            CheckpointError: a LoRA does not fit the model.
        """
        components, denoiser = model.components, model.denoiser
        profile = components.profile
        request = replace(
            request,
            loras=tuple(
                replace(use, source=denoiser.loras.find(use.source).path.absolute()) for use in request.loras
            ),
            video=None if request.video is None else Path(request.video).absolute(),
            history_codebook=(
                None if request.history_codebook is None else Path(request.history_codebook).absolute()
            ),
        )
        # Only "auto" asks what the checkpoint is; the answer may be logged.
        sampling = request.sampling(request_order(request, lambda: components.default_order))
        denoiser.check(sampling)
        return cls(
            request=request,
            sampling=sampling,
            images=RequestImages.load(request, profile.buckets),
            sections=tuple(plan_sections(sampling)),
            trained_order=profile.order,
        )

    def plan(self, model: LoadedModel) -> JobMemory:
        """How the job runs inside the budget.

        Raises:
            BudgetError: it does not fit.
        """
        job = replace(
            model.memory.job(self.sampling, self.images.size),
            lora_bytes=model.denoiser.lora_bytes(self.sampling),
            num_encoded_frames=min(max(self.num_given, 1), MAX_CLIP_FRAMES),
            num_source_pixels=0 if self.images.video is None else math.prod(self.images.video.given_size),
            num_more_frames=self.num_frames - self.num_made,
        )
        return model.memory.plan(job)

    def metadata(self, model: LoadedModel, numerics: Mapping[str, object]) -> dict[str, object]:
        """What the video says of its making, by a ``model`` and its ``numerics``."""
        return video_metadata(
            self.request,
            self.sampling,
            self.images,
            loras=[model.denoiser.loras.find(lora.source) for lora in self.sampling.loras],
            model=model.components.name,
            identity=model.identity() | {"numerics": numerics},
        )

    @property
    def num_given(self) -> int:
        """Frames of the video that is extended."""
        return 0 if self.images.video is None else self.images.video.num_frames

    @property
    def num_made(self) -> int:
        """Frames that the latents of the sections stand for, 4 for each."""
        return 4 * self.sampling.latent_window_size * self.sampling.num_sections

    @property
    def num_leading(self) -> int:
        """Frames before those of the sections; -3 where the first latent stands for one frame instead of four."""
        is_continued = self.sampling.order == "forward"
        return self.request.num_leading_frames + (self.num_given if is_continued else 0)

    @property
    def num_frames(self) -> int:
        """Frames of the whole video."""
        return self.num_leading + self.num_made + (self.num_given if self.sampling.order == "inverted" else 0)

    def given_frames(self) -> Iterator[tuple[Tensor, int]]:
        """Frames of the video that is extended, uint8 [T, H, W, 3] a few at a time, each with its place."""
        if self.images.video is None:
            return
        place = 0 if self.sampling.order == "forward" else self.num_leading + self.num_made
        for frames in self.images.video.chunks(self.images.size):
            yield frames, place
            place += len(frames)

    def describe(
        self, asked: Request, *, num_finished_sections: int, job_dir: Path | None, notes: Sequence[str] = ()
    ) -> JobEvent:
        """What a listener is told when the job begins.

        Args:
            asked: the request, or with the prompt of a redo.
            num_finished_sections: sampled by earlier runs.
            job_dir: where they are kept.
            notes: on the run, beside those on the request.
        """
        (height, width), (image_height, image_width) = self.images.size, self.images.given_size
        return JobEvent(
            order=self.sampling.order,
            num_sections=self.sampling.num_sections,
            num_frames=self.num_frames,
            fps=asked.fps,
            seconds=self.num_frames / asked.fps,
            requested_seconds=asked.seconds,
            height=height,
            width=width,
            image_height=image_height,
            image_width=image_width,
            num_finished_sections=num_finished_sections,
            job_dir=job_dir,
            prompts=self._prompt_slots(asked),
            num_given_frames=self.num_given,
            notes=(*self._notes(), *notes),
        )

    def _prompt_slots(self, asked: Request) -> tuple[PromptSlot, ...]:
        """The prompts in seconds of video and in the order in which sections are made; none where there is only one."""
        stretches = asked.prompt_timeline().stretches
        made = {section.place: section.index for section in self.sections}
        return tuple(
            PromptSlot(
                text=stretch.text,
                start_seconds=asked.section_seconds(stretch.first_section),
                end_seconds=asked.section_seconds(stretch.end_section),
                sections=tuple(made[place] for place in range(stretch.first_section, stretch.end_section)),
            )
            for stretch in (stretches if len(stretches) > 1 else ())
        )

    def _notes(self) -> Iterator[str]:
        """What of the request changes nothing, or what the published checkpoints were not trained for."""
        request, sampling = self.request, self.sampling
        yield from request.notes()
        if self.images.start is None:
            yield "text-to-video: image-to-video models were not trained without a start image"
        if sampling.order in UNTRAINED_ORDERS:
            yield f"order {sampling.order}: experimental, no published model was trained for it"
        if sampling.untrained_schedule is not None:
            yield f"schedule {sampling.untrained_schedule}: experimental, no published model was trained for it"
        if sampling.history_codebook is not None:
            yield "history discretisation: experimental, no published model was trained with it"
        if request.guide_images:
            slots = ", ".join(
                f"{guide.time:g} s from {request.section_seconds(place):.2f} s on"
                for guide, place in zip(request.guide_images, sampling.guide_places, strict=True)
            )
            yield f"guide images: {slots}; no published model was trained to change its start image"
        if sampling.order in ORDERS and self.trained_order not in (None, "both", sampling.order):
            yield f"order {sampling.order}: this model was trained in the {self.trained_order} order"
