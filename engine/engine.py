"""The engine: one model, any number of jobs."""

import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..kernels import use_settings
from ..quant import DENSE_DTYPES, WeightFormat, make_format
from .attention import SelfAttention
from .attention_backends import AttentionShape
from .attention_choice import make_self_attention
from .budget import make_plan
from .checkpoint import Checkpoint, open_transformer
from .components import ComponentRef, Components, find_components
from .conditioning import Conditioning
from .config import TUNED_SETTINGS, EngineConfig, Request, SamplingConfig
from .conversion import OnProgress
from .denoiser import Denoiser, EventHandler, LatentSection, assemble
from .device import check_triton, memory_errors, resolve_device
from .encoders import Encoders
from .errors import InputError
from .events import Event, FileEvent, PartialEvent, PhaseEvent, PreviewEvent, SectionEvent, StepEvent
from .generation import Generation, Section
from .job import Job
from .job_folder import JobFolder
from .job_paths import new_job_path
from .job_queue import JobQueue
from .job_record import JobRecord, ModelSource
from .job_run import JobRun
from .known_shapes import shapes_of
from .machine import this_machine
from .magnitude import find_ratios
from .metadata import video_metadata
from .model_memory import ModelMemory, lift_memory_limit, planned_job
from .outputs import check_video_path
from .plan import Plan
from .png_writer import PngWriter
from .previews import LatentPreviews, cached_latent_rgb
from .step_cache import StepCache, StepCacheFactory, make_step_cache
from .transformer import PackedTransformer
from .transformer_config import TransformerConfig
from .vae import VideoVAE
from .video import Video, VideoWriter

_logger = logging.getLogger(__name__)


class Engine:
    """Generates videos with one FramePack checkpoint; several engines may live in one process.

    Attributes:
        config: what the engine may use.
        components: where the model's companions are.
        step_caches: makes the step cache of every branch and section; assign another factory to try another policy.
    """

    def __init__(
        self,
        *,
        config: EngineConfig,
        components: Components,
        checkpoint: Checkpoint,
        memory: ModelMemory,
        source: ModelSource | None = None,
    ) -> None:
        """Use :meth:`load`."""
        self._jobs = JobQueue(config.max_queued_jobs)
        self._source = source or ModelSource(model=components.name, config=config)
        self.config = config
        self.components = components
        self._checkpoint = checkpoint
        self._memory = memory
        self.step_caches: StepCacheFactory = self._make_step_cache
        self._denoiser = Denoiser(
            memory.transformer, self._make_attention, lambda sampling: self.step_caches(sampling)
        )

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = "demo",
        *,
        config: EngineConfig | None = None,
        components: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
        on_conversion: OnProgress | None = None,
    ) -> Self:
        """Load a transformer. Its companions (VAE, encoders) are opened when a job first needs them.

        A transformer of 1 GiB and more is converted into a unit store in the cache directory when it is first loaded in
        a precision: its blocks then come from there, as the budget of the configuration allows.

        Args:
            source: "demo" (built in), a Hub id, a folder or a single .safetensors file.
            config: what the engine may use.
            components: other sources for companions, by name: vae, text_encoder, tokenizer, text_encoder_2,
                tokenizer_2, image_encoder, feature_extractor.
            size: (height, width) of the videos to come, which the budget is checked for before anything is downloaded;
                None is the model's smallest bucket.
            on_conversion: told how far a conversion is.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or of another model.
            DeviceError: the device does not exist.
            BudgetError: the weights are more than it holds.
        """
        config = config or EngineConfig()
        device = resolve_device(config.device)
        check_triton(device)
        _use_tuned_kernels(config)
        found = find_components(source, overrides=components, local_files_only=config.local_files_only)
        weight_format = _weight_format(config, device)
        machine = this_machine(device, vram=config.vram, ram=config.ram)
        wanted = size or min(found.profile.buckets, key=math.prod)

        def admit(_: str, shape: TransformerConfig) -> None:
            # Encoders and VAE come in pieces where need be: the step loop decides whether a model fits.
            job = planned_job(
                shapes_of(found, shape), config, weight_format, SamplingConfig(num_sections=1), wanted
            )
            make_plan(replace(job, is_latents_only=True), machine)

        checkpoint = open_transformer(
            found.transformer,
            local_files_only=config.local_files_only or found.is_hub_silent,
            admit=admit,
        )
        with memory_errors("load"):
            memory = ModelMemory(
                checkpoint,
                shapes_of(found, checkpoint.config),
                config,
                weight_format,
                device,
                machine,
                on_conversion,
            )
        engine = cls(
            config=config,
            components=found,
            checkpoint=checkpoint,
            memory=memory,
            source=ModelSource.absolute(source, components, config),
        )
        if config.attention != "auto":
            # A library that is missing is not found out after the prompt has been encoded.
            engine._make_attention(_smallest_attention(memory.transformer))
        return engine

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self._denoiser.transformer.device

    @property
    def model_hash(self) -> str:
        """Source hash of the transformer, as in the metadata of videos."""
        return self._checkpoint.source_hash

    def plan(self, request: Request) -> Plan:
        """How the video of ``request`` is made inside the budget; ``str(plan)`` is a table.

        Raises:
            BudgetError: it does not fit; the message names what would.
        """
        return Generation(request, self.components, self._denoiser, self._memory).memory.plan

    def close(self) -> None:
        """Cancel the jobs, give back the memory of the weights; the engine cannot be used any more."""
        self._jobs.close()
        self._memory.close()
        if self.device.type == "cuda":
            lift_memory_limit(self.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def loras(self) -> tuple[str, ...]:
        """Names of the LoRAs that :meth:`load_lora` has read."""
        return self._denoiser.loras.names

    def load_lora(self, path: str | os.PathLike[str], *, name: str | None = None) -> str:
        """Read a LoRA, for jobs to name in ``loras``; the model's weights stay as they are.

        Jobs may also give the file itself. Either way it is read once and kept until :meth:`unload_lora`.

        Args:
            path: a .safetensors file in the names of diffusers, PEFT, kohya, musubi, Tencent or ComfyUI, or its folder.
            name: what jobs call it; None takes the name of the file without its suffix.

        Returns:
            The name.

        Raises:
            ConfigError: another file has this name.
            CheckpointError: the file is damaged, pickled, or does not fit the model.
        """
        return self._denoiser.loras.load(path, name)

    def unload_lora(self, source: str | os.PathLike[str]) -> None:
        """Forget the LoRA that is called ``source``, or whose file that is; running jobs keep theirs."""
        self._denoiser.loras.unload(source)

    def sample(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Iterator[LatentSection]:
        """Latents in, latents out: yield every section in generation order. Needs no encoder and no VAE.

        Raises:
            InputError: a tensor does not fit the checkpoint; raised at once.
            BudgetError: the job does not fit into the budget; raised at once.
            NumericalError: latents became NaN or infinite.
        """
        conditioning.check(self._denoiser.transformer.config, sampling.cfg_scale)
        height, width = (8 * edge for edge in conditioning.start_latent.shape[3:])
        memory = self._memory.plan(
            sampling,
            (height, width),
            is_latents_only=True,
            lora_bytes=self._denoiser.lora_bytes(sampling),
        )
        return self._denoiser.sample(conditioning, sampling, on_event, memory)

    def sample_video(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Tensor:
        """:meth:`sample` assembled in video order, start latent included: [1, C, 1 + n * window, Y, X] fp32."""
        sections = list(self.sample(conditioning, sampling, on_event=on_event))
        return assemble(sections, conditioning.start_latent)

    def generate(self, request: Request, *, on_event: EventHandler | None = None) -> Iterator[Section]:
        """Yield the sections of a video in generation order; closing the iterator cancels the job.

        The request is checked and its image read at once, before any section is asked for.
        """
        job = Generation(request, self.components, self._denoiser, self._memory)
        return job.sections(self._encoders, lambda: self._vae, on_event)

    def render(
        self,
        request: Request,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        on_event: EventHandler | None = None,
        preview_dir: str | os.PathLike[str] | None = None,
        png_dir: str | os.PathLike[str] | None = None,
        job_dir: str | os.PathLike[str] | None = None,
    ) -> Video:
        """Generate a whole video into an MP4, in bounded memory.

        If the job stops early, by an error or Ctrl-C, what is finished stays playable in
        ``<name>.partial.mp4`` beside ``path`` (``<name>.partial-2.mp4`` and so on where earlier jobs left theirs);
        a note of the exception says so.

        Args:
            request: the video.
            path: the MP4; its folder is created.
            overwrite: replace an existing file.
            on_event: called with every event.
            preview_dir: folder for pictures of the latents, one a section, renewed after every step.
            png_dir: folder for every frame as PNG, beside the MP4. Frames that an earlier run finished are not
                written again.
            job_dir: folder that keeps what is finished after every section. If the same job is there, killed or
                failed, it goes on bit for bit; see :meth:`resume`. None keeps nothing: latents are larger than the
                video that they become.

        Raises:
            InputError: the image, an output or ``job_dir`` cannot be used, or holds another job.
        """
        job = Generation(request, self.components, self._denoiser, self._memory)
        with (
            self._open_run(job_dir, request, job, path, overwrite) as run,
            self._open_writer(request, job, path, overwrite, run) as writer,
        ):
            png = _open_png(png_dir, job, overwrite)
            report = self._reporter(on_event, preview_dir)
            try:
                for section in job.sections(self._encoders, lambda: self._vae, report, run):
                    report(PhaseEvent(phase="encode"))
                    if png is not None:
                        png.write(section.frames, section.first_frame)
                    segment = writer.write(section.frames, section.first_frame)
                    if run is not None:
                        run.keep_segment(section.index, segment)
                    report(_section_event(section, job, writer.num_final_frames))
                    # The next section is decoded before the loop would let go of this one's frames.
                    del section
                report(PhaseEvent(phase="write"))
                video = writer.finish()
                if run is not None:
                    run.finish(video.path)
            except BaseException as error:
                _keep_what_is_finished(writer, job, error, report, run)
                raise
        report(FileEvent(path=video.path))
        return video

    def resume(
        self,
        job_dir: str | os.PathLike[str],
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        on_event: EventHandler | None = None,
        preview_dir: str | os.PathLike[str] | None = None,
    ) -> Video:
        """Finish the job in ``job_dir``, bit for bit as if it had never stopped.

        Args:
            job_dir: what :meth:`render` was given.
            path: another MP4 than the one that was asked for first.
            overwrite: replace an existing file.
            on_event: called with every event.
            preview_dir: as for :meth:`render`.

        Raises:
            InputError: there is no job, or it is of another model than this engine's.
        """
        folder = JobFolder.open(job_dir)
        output = folder.record.output if path is None else path
        return self.render(
            folder.record.request,
            output,
            overwrite=overwrite or folder.may_replace(output),
            on_event=on_event,
            preview_dir=preview_dir,
            job_dir=job_dir,
        )

    def submit(
        self,
        request: Request,
        path: str | os.PathLike[str] | None = None,
        *,
        job_dir: str | os.PathLike[str] | None = None,
        priority: int = 0,
        overwrite: bool = False,
        has_previews: bool = False,
    ) -> Job:
        """Have a thread of this engine make a video; jobs run one after the other.

        Args:
            request: the video.
            path: the MP4; None is video.mp4 in the job's folder, or where a job that is continued was to write.
            job_dir: folder of the job, new or to be continued; None is a new one in the cache folder.
            priority: jobs with a higher one run first.
            overwrite: replace an existing file.
            has_previews: draw a picture of the latents at every step, in the job's folder.

        Raises:
            InputError: the image, an output or ``job_dir`` cannot be used.
            BudgetError: the job does not fit into the budget.
            QueueFullError: as many jobs wait as may.
        """
        job_dir = Path(new_job_path(self.config.cache_path()) if job_dir is None else job_dir)
        if path is None:
            is_new = not JobFolder.is_job(job_dir)
            path = job_dir / "video.mp4" if is_new else JobFolder.open(job_dir).record.output
        generation = Generation(request, self.components, self._denoiser, self._memory)
        # From now on the folder tells a later process of the job, even if its turn never comes.
        folder = self._make_folder(job_dir, request, generation, path, overwrite)
        job = Job(
            folder.path,
            fps=request.fps,
            priority=priority,
            render=lambda on_event: self.resume(
                job_dir,
                path,
                overwrite=overwrite,
                on_event=on_event,
                preview_dir=job_dir / "previews" if has_previews else None,
            ),
            release=self._release,
        )
        self._jobs.put(job)
        return job

    def _release(self) -> None:
        """Give back the memory of the device that the weights of the next job do not need yet."""
        self._memory.suspend()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _open_run(
        self,
        job_dir: str | os.PathLike[str] | None,
        request: Request,
        job: Generation,
        path: str | os.PathLike[str],
        overwrite: bool,
    ) -> Iterator[JobRun | None]:
        """The job of ``request`` in ``job_dir``, new or continued."""
        if job_dir is None:
            yield None
            return
        folder = self._make_folder(job_dir, request, job, path, overwrite)
        job.memory.plan = replace(job.memory.plan, vae_tile=folder.record.vae_tile)
        with folder.running() as run:
            yield run

    def _make_folder(
        self,
        job_dir: str | os.PathLike[str],
        request: Request,
        job: Generation,
        path: str | os.PathLike[str],
        overwrite: bool,
    ) -> JobFolder:
        if not (overwrite or (JobFolder.is_job(job_dir) and JobFolder.open(job_dir).may_replace(path))):
            check_video_path(Path(path), overwrite=False)
        loras = tuple(
            replace(use, source=self._denoiser.loras.find(use.source).path.absolute())
            for use in request.loras
        )
        size = job.image.height, job.image.width
        record = JobRecord(
            token=secrets.token_hex(4),
            source=self._source,
            request=replace(request, size=size, order=job.sampling.order, loras=loras),
            sampling=replace(job.sampling, loras=loras),
            metadata=self._metadata(request, job),
            output=Path(path).absolute(),
            is_overwriting=overwrite,
            vae_tile=job.memory.plan.vae_tile,
        )
        return JobFolder.make(job_dir, record, job.image)

    def _open_writer(
        self,
        request: Request,
        job: Generation,
        path: str | os.PathLike[str],
        overwrite: bool,
        run: JobRun | None,
    ) -> VideoWriter:
        return VideoWriter(
            path,
            height=job.image.height,
            width=job.image.width,
            fps=request.fps,
            crf=request.crf,
            num_frames=job.num_frames,
            metadata=self._metadata(request, job) if run is None else run.metadata,
            overwrite=overwrite,
            kept=None if run is None else run.segments,
        )

    def _reporter(
        self, on_event: EventHandler | None, preview_dir: str | os.PathLike[str] | None
    ) -> EventHandler:
        """Passes events on; with a ``preview_dir`` it draws each step."""
        previews = None if preview_dir is None else LatentPreviews(preview_dir, self._latent_rgb())

        def report(event: Event) -> None:
            if on_event is not None:
                on_event(event)
            if previews is not None and isinstance(event, StepEvent):
                preview = PreviewEvent(path=previews.write(event), section=event.section, step=event.step)
                if on_event is not None:
                    on_event(preview)

        return report

    def _make_attention(self, shape: AttentionShape) -> SelfAttention:
        return make_self_attention(
            self.config.attention,
            precision=self._precision,
            device=self.device,
            cache_dir=self.config.cache_path(),
            shape=shape,
        )

    @property
    def _precision(self) -> str:
        return self._denoiser.transformer.weight_format.name

    @cached_property
    def _encoders(self) -> Encoders:
        return Encoders(
            self.components,
            device=self.device,
            dtype=self._denoiser.transformer.dtype,
            cache_dir=self.config.cache_path(),
            local_files_only=self.config.local_files_only,
        )

    @cached_property
    def _vae(self) -> VideoVAE:
        folder = self.components.ref("vae").fetch(local_files_only=self.config.local_files_only)
        # As published on CUDA; half precision is slow or missing on CPUs.
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        with memory_errors("load"):
            vae = VideoVAE.load(ComponentRef(str(folder)), device=self.device, dtype=dtype)
        return vae

    def _make_step_cache(self, sampling: SamplingConfig) -> StepCache:
        ratios = None
        if sampling.step_cache == "magcache":
            name = self.components.name
            ratios = find_ratios(
                self._denoiser.transformer.config,
                sampling.order,
                model=name if name == "demo" else self.components.transformer,
                model_hash=self.model_hash,
                cache_dir=self.config.cache_path(),
            )
        return make_step_cache(sampling, ratios)

    def _latent_rgb(self) -> Tensor:
        """The model's own latent-to-RGB map, or one fitted to its VAE."""
        if self.components.profile.latent_rgb is not None:
            return torch.tensor(self.components.profile.latent_rgb)
        return cached_latent_rgb(self._vae, self.config.cache_path())

    def _metadata(self, request: Request, job: Generation) -> dict[str, object]:
        is_cuda = self.device.type == "cuda"
        return video_metadata(
            request,
            job.sampling,
            job.image,
            loras=[self._denoiser.loras.find(lora.source) for lora in job.sampling.loras],
            model=self.components.name,
            model_hash=self.model_hash,
            device=torch.cuda.get_device_name(self.device) if is_cuda else "cpu",
            precision=self._precision,
        )


def _weight_format(config: EngineConfig, device: torch.device) -> WeightFormat:
    fallback = "fp32" if device.type == "cpu" else "bf16"
    dtype = DENSE_DTYPES[fallback if config.compute_dtype == "auto" else config.compute_dtype]
    return make_format(config.precision or fallback, dtype)


def _use_tuned_kernels(config: EngineConfig) -> None:
    """Take the launch settings that `isoframe bench tune` measured on this machine."""
    tuned = config.cache_path() / TUNED_SETTINGS
    if not tuned.is_file():
        return
    try:
        use_settings(tuned)
    except (OSError, ValueError, AttributeError) as error:
        _logger.warning("%s is damaged (%s): delete it, or run isoframe bench tune again", tuned, error)
    else:
        _logger.info("launch settings of the kernels: %s", tuned)


def _smallest_attention(transformer: PackedTransformer) -> AttentionShape:
    """A shape that every attention accepts if it runs on the device at all."""
    config = transformer.config
    return AttentionShape(
        num_tokens=1,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        dtype=transformer.dtype,
    )


def _open_png(png_dir: str | os.PathLike[str] | None, job: Generation, overwrite: bool) -> PngWriter | None:
    return None if png_dir is None else PngWriter(png_dir, num_frames=job.num_frames, overwrite=overwrite)


def _section_event(section: Section, job: Generation, num_final_frames: int) -> SectionEvent:
    return SectionEvent(
        section=section.index,
        num_sections=job.sampling.num_sections,
        num_final_frames=num_final_frames,
        num_frames=job.num_frames,
    )


def _keep_what_is_finished(
    writer: VideoWriter,
    job: Generation,
    error: BaseException,
    report: EventHandler,
    run: JobRun | None,
) -> None:
    """Leave a playable file of a job that stops early, and say so in a note of ``error``."""
    if run is not None:
        error.add_note(f"finished sections are kept in {run.path}; to go on: isoframe resume {run.path}")
    provisional = None if job.decoder is None else job.decoder.provisional()
    if provisional is None:
        return
    try:
        earlier = None if run is None else run.partial()
        video = writer.write_partial(earlier, preview=(provisional.frames, provisional.first_frame))
        if run is not None:
            run.note_partial(video.path)
    except InputError as failure:
        error.add_note(f"the finished part could not be kept: {failure}")
        return
    error.add_note(f"{video.num_frames} of {job.num_frames} frames are kept in {video.path}")
    report(PartialEvent(path=video.path, num_frames=video.num_frames, num_video_frames=job.num_frames))
