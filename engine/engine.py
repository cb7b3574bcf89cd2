"""The engine: one model, any number of jobs."""

import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from .companions.components import find_components
from .companions.vae import DecodedFrames
from .events import EventHandler, OnConversion
from .files import expanded
from .generation.decoding import decode_latents
from .generation.frame_filter import FrameFilter
from .generation.generation import Section, generate_sections, ignore, open_generation
from .generation.loaded_model import LoadedModel, Place, open_source
from .generation.rendering import Outputs, Rendering
from .generation.single_frame import write_frame
from .generation.step_cache_error import StepCacheError, measure_step_cache
from .jobs.folder import JobFolder
from .jobs.job import Job
from .jobs.paths import new_job_path
from .jobs.queue import JobQueue
from .jobs.record import ModelSource
from .media.video import Video
from .model.conditioning import Conditioning
from .planning.machine import Machine, with_budget
from .planning.plan import Plan
from .request.config import EngineConfig, Request, SamplingConfig
from .request.sizes import Size
from .sampling.denoiser import LatentSection, assemble
from .sampling.step_cache import StepCacheFactory
from .weights.timeline_file import write_timeline


class Engine:
    """Generates videos with one FramePack checkpoint; several engines may live in one process.

    Attributes:
        config: what the engine may use.
        components: where the model's companions are.
    """

    def __init__(self, model: LoadedModel, source: ModelSource) -> None:
        """Use :meth:`load`."""
        self._model = model
        self._source = source
        self._jobs = JobQueue(model.config.max_queued_jobs)
        self._memory = model.memory
        self._denoiser = model.denoiser
        self.config = model.config
        self.components = model.components

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = "demo",
        *,
        config: EngineConfig | None = None,
        components: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
        on_conversion: OnConversion | None = None,
        step_caches: StepCacheFactory | None = None,
        frame_filter: FrameFilter | None = None,
    ) -> Self:
        """Load a transformer. Its companions (VAE, encoders) are opened when a job first needs them.

        A transformer of 1 GiB and more is converted into a unit store in the cache directory when it is first loaded in
        a precision: its blocks then come from there, as the budget of the configuration allows.

        Args:
            source: "demo" (built in), a Hub id, a folder, a single .safetensors file, or a unit store, whose precision it has.
            config: what the engine may use.
            components: other sources for companions, by name: vae, text_encoder, tokenizer, text_encoder_2,
                tokenizer_2, image_encoder, feature_extractor.
            size: (height, width) of the videos to come, which the budget is checked for before anything is downloaded;
                None is the model's smallest bucket.
            on_conversion: told how far a conversion is.
            step_caches: makes the step cache of every branch and section; None takes what a request names.
            frame_filter: a function of the host through which every frame passes before it leaves the engine, with the
                place of the first of them in the video: uint8 [T, H, W, 3] in and out. It may blur or mark frames; if it
                raises :class:`ContentError` the job ends. Pictures of latents (previews) do not pass through it.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or of another model.
            DeviceError: the device does not exist.
            BudgetError: the weights are more than it holds.
        """
        config = config or EngineConfig()
        place = Place.of(config)
        found = find_components(source, overrides=components, local_files_only=config.local_files_only)
        checkpoint, place = open_source(found, config, place, size)
        model = LoadedModel(
            checkpoint, found, config, place, on_conversion=on_conversion, step_caches=step_caches,
            frame_filter=frame_filter,
        )  # fmt: skip
        return cls(model, ModelSource.absolute(source, components, config))

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self._model.device

    @property
    def precision(self) -> str:
        """How the blocks' weights are stored and multiplied, as in a configuration."""
        return self._model.precision

    @property
    def model_hash(self) -> str:
        """Source hash of the transformer, as in the metadata of videos."""
        return self._model.checkpoint.source_hash

    def plan(self, request: Request) -> Plan:
        """How the video of ``request`` is made inside the budget; ``str(plan)`` is a table.

        Raises:
            BudgetError: it does not fit; the message names what would.
        """
        return open_generation(request, self._model).memory.plan

    @property
    def machine(self) -> Machine:
        """The limits that jobs are planned in, and the card that their times are predicted for."""
        return self._memory.machine

    def set_budget(self, *, vram: Size | None = None, ram: Size | None = None) -> None:
        """Have other limits for the jobs to come, as in :class:`EngineConfig`; None keeps one.

        Raises:
            ConfigError: a limit is more than the machine has.
        """
        self._memory.set_budget(
            with_budget(self.machine, self.device, vram=vram, ram=ram, held=self._memory.others)
        )

    def release(self) -> None:
        """Give back the memory of the device that nothing needs between jobs; the next one takes it again."""
        self._model.release()

    def lift_memory_limit(self) -> None:
        """Let the rest of the process take more of the device than the budgets of its engines.

        Else torch's allocator fails beyond their sum, also for the host's own models. Jobs still keep to the budget.
        """
        self._memory.limit.lift()

    def close(self) -> None:
        """Cancel the jobs, give back the memory of the weights; the engine cannot be used any more."""
        self._jobs.close()
        self._model.close()

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
        memory = self._model.plan_sampling(sampling, (height, width))
        return self._denoiser.sample(conditioning, sampling, on_event, memory)

    def trace(self) -> None:
        """From now on, record when the weights are copied and used; :meth:`write_trace` writes it."""
        self._memory.trace()

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Write when the weights of the latest steps were copied and used, and what compute waited for.

        Args:
            path: .json for chrome://tracing and ui.perfetto.dev, .svg or .png for a chart of the last two steps.

        Raises:
            ConfigError: another suffix; a chart without matplotlib; or nothing was copied since :meth:`trace`.
            InputError: the file cannot be written.
        """
        write_timeline([] if self._memory.log is None else self._memory.log.timings(), Path(expanded(path)))

    def plan_sampling(self, sampling: SamplingConfig, size: tuple[int, int]) -> Plan:
        """How :meth:`sample` runs at ``size`` (height, width in pixels) inside the budget.

        Raises:
            BudgetError: it does not fit.
        """
        return self._model.plan_sampling(sampling, size).plan

    def sample_video(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Tensor:
        """:meth:`sample` assembled in video order, start latent included: [1, C, 1 + n * window, Y, X] fp32."""
        return assemble(
            list(self.sample(conditioning, sampling, on_event=on_event)), conditioning.start_latent
        )

    def condition(self, request: Request) -> Conditioning:
        """Text and image of ``request`` as tensors, for any number of :meth:`sample`.

        Of one prompt they serve videos of any length; of prompts with times those of as many sections. Errors are those
        of :meth:`generate`.
        """
        return open_generation(request, self._model).condition()

    def decode(
        self, latents: Tensor, *, order: str = "inverted", latent_window_size: int = 9
    ) -> Iterator[DecodedFrames]:
        """Latents of :meth:`sample_video` to frames, section by section inside the budget.

        Joined by ``first_frame`` they are the video that :meth:`generate` makes of these latents.

        Args:
            latents: [1, C, 1 + n * window, Y, X], scaled, the start latent first.
            order: in which the sections were made; their joints depend on it.
            latent_window_size: latent frames of a section.

        Raises:
            InputError: the shape is another one; raised at once.
            BudgetError: the size does not fit into the budget; raised at once.
        """
        return decode_latents(latents, self._model, order=order, window=latent_window_size)

    def generate(
        self, request: Request, *, on_event: EventHandler | None = None
    ) -> Generator[Section, None, None]:
        """Yield the sections of a video in generation order; closing the iterator cancels the job.

        The request is checked and its image read at once, before any section is asked for.

        Raises:
            InputError: the image cannot be used.
            BudgetError: the job does not fit into the budget.
        """
        return generate_sections(request, self._model, on_event or ignore)

    def step_cache_error(self, request: Request) -> StepCacheError:
        """What the step cache of ``request`` does to its first section, which is made with and without it.

        Raises:
            ConfigError: the request has no step cache.
        """
        return measure_step_cache(request, self._model)

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
        latents_path: str | os.PathLike[str] | None = None,
        numerics: Mapping[str, object] | None = None,
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
            latents_path: file for the latents of the whole video, .safetensors.
            numerics: what the metadata of another video says under this name, which is computed as it was; what this
                machine cannot do is done as it can.

        Raises:
            InputError: the image, an output or ``job_dir`` cannot be used, or holds another job.
        """
        outputs = Outputs(
            path=path, overwrite=overwrite, preview_dir=preview_dir, png_dir=png_dir, job_dir=job_dir,
            latents_path=latents_path,
        )  # fmt: skip
        return Rendering.of(request, outputs, self._model, self._source, numerics=numerics or {}).write(
            on_event
        )

    def render_frame(
        self,
        request: Request,
        path: str | os.PathLike[str],
        *,
        target_index: int,
        overwrite: bool = False,
        on_event: EventHandler | None = None,
    ) -> Path:
        """Make one latent frame alone, as it would come later in a video, and write it as a PNG with metadata.

        Args:
            request: the image and the prompt; its length, window and order do not matter.
            path: the PNG; its folder is created.
            target_index: position of the frame as the model sees it; the start latent is 0, four frames of video apart.
            overwrite: replace an existing file.
            on_event: called with every event.

        Raises:
            InputError: an image or ``path`` cannot be used.
        """
        return write_frame(
            request,
            Path(expanded(path)),
            self._model,
            target_index=target_index,
            overwrite=overwrite,
            on_event=on_event,
        )

    def resume(
        self,
        job_dir: str | os.PathLike[str],
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        on_event: EventHandler | None = None,
        preview_dir: str | os.PathLike[str] | None = None,
        png_dir: str | os.PathLike[str] | None = None,
        latents_path: str | os.PathLike[str] | None = None,
    ) -> Video:
        """Finish the job in ``job_dir``, bit for bit as if it had never stopped.

        Args:
            job_dir: what :meth:`render` was given.
            path: another MP4 than the one that was asked for first.
            overwrite: replace an existing file.
            on_event: called with every event.
            preview_dir: as for :meth:`render`.
            png_dir: as for :meth:`render`; frames that an earlier run finished are not written.
            latents_path: as for :meth:`render`, of all sections; a job that is complete has none to write.

        Raises:
            InputError: there is no job, it is of another model than this engine's, or an output cannot be used.
        """
        folder = JobFolder.open(job_dir)
        outputs = Outputs(
            path=path, overwrite=overwrite, preview_dir=preview_dir, png_dir=png_dir, job_dir=job_dir,
            latents_path=latents_path,
        )  # fmt: skip
        rendering = Rendering.of(folder.record.request, outputs, self._model, self._source, folder)
        return rendering.write(on_event)

    def submit(
        self,
        request: Request,
        path: str | os.PathLike[str] | None = None,
        *,
        job_dir: str | os.PathLike[str] | None = None,
        priority: int = 0,
        overwrite: bool = False,
        has_previews: bool = False,
        png_dir: str | os.PathLike[str] | None = None,
        latents_path: str | os.PathLike[str] | None = None,
    ) -> Job:
        """Have a thread of this engine make a video; jobs run one after the other.

        Args:
            request: the video.
            path: the MP4; None is video.mp4 in the job's folder, or where a job that is continued was to write.
            job_dir: folder of the job, new or to be continued; None is a new one in the cache folder.
            priority: jobs with a higher one run first.
            overwrite: replace an existing file.
            has_previews: draw a picture of the latents at every step, in the job's folder.
            png_dir: as for :meth:`resume`; a later process that resumes the job has to be told again.
            latents_path: as for :meth:`resume`, like ``png_dir``.

        Raises:
            InputError: the image, an output or ``job_dir`` cannot be used.
            BudgetError: the job does not fit into the budget.
            QueueFullError: as many jobs wait as may.
        """
        job_dir = Path(new_job_path(self.config.cache_path()) if job_dir is None else expanded(job_dir))
        outputs = Outputs(
            path=path, overwrite=overwrite, preview_dir=job_dir / "previews" if has_previews else None,
            png_dir=png_dir, job_dir=job_dir, latents_path=latents_path,
        )  # fmt: skip
        self._jobs.check_free(outputs.named(), job_dir)
        # From now on the folder tells a later process of the job, even if its turn never comes.
        rendering = Rendering.of(request, outputs, self._model, self._source)
        assert rendering.folder is not None, "it was asked for"
        job = Job(
            rendering.folder, priority=priority, render=rendering.write, release=self.release, outputs=outputs.named()
        )  # fmt: skip
        self._jobs.put(job)
        return job

    def prepare(
        self,
        request: Request,
        path: str | os.PathLike[str] | None = None,
        *,
        job_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> JobFolder:
        """Check a request and keep it in a folder, from which :meth:`resume` makes the video, in another process too.

        Args:
            request: the video.
            path: as for :meth:`submit`, and so are the others, and the errors.
        """
        outputs = Outputs(
            path=path, overwrite=overwrite, job_dir=job_dir or new_job_path(self.config.cache_path())
        )
        folder = Rendering.of(request, outputs, self._model, self._source).folder
        assert folder is not None, "it was asked for"
        return folder

    def identity(self) -> dict[str, object]:
        """What decides the bits of a video besides its request, under the names of a video's metadata."""
        return self._model.identity()
