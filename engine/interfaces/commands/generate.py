"""``isoframe generate``: an image and a prompt in, an MP4 out."""

from pathlib import Path

import typer

from ...errors import ConfigError
from ...jobs.paths import new_job_path
from ...request.config import EngineConfig, Request
from .terminal import options
from .terminal.failures import readable_errors
from .terminal.options import DEFAULTS
from .terminal.video_command import Rendering


def generate(
    context: typer.Context,
    prompt: options.Prompt,
    out: options.Out,
    image: options.ImagePath = None,
    end_image: options.EndImage = None,
    end_image_use: options.EndImageUse = DEFAULTS.end_image_use,
    end_image_strength: options.EndImageStrength = DEFAULTS.end_image_strength,
    loop: options.Loop = False,
    guide_image: options.GuideImages = None,
    extend: options.Extend = None,
    direction: options.Direction = DEFAULTS.direction,
    negative_prompt: options.NegativePrompt = DEFAULTS.negative_prompt,
    prompt_blend: options.PromptBlend = DEFAULTS.prompt_blend,
    seconds: options.Seconds = DEFAULTS.seconds,
    model: options.Model = "demo",
    order: options.Order = DEFAULTS.order,
    allow_untrained: options.AllowUntrained = False,
    size: options.Size = None,
    base_resolution: options.BaseResolution = None,
    posterior: options.Posterior = DEFAULTS.posterior,
    force: options.Force = False,
    preset: options.Preset = None,
    steps: options.Steps = DEFAULTS.num_steps,
    seed: options.Seed = DEFAULTS.seed,
    guidance: options.Guidance = DEFAULTS.guidance_scale,
    cfg: options.Cfg = DEFAULTS.cfg_scale,
    cfg_rescale: options.CfgRescale = DEFAULTS.cfg_rescale,
    sampler: options.Sampler = DEFAULTS.sampler,
    step_cache: options.StepCache = DEFAULTS.step_cache,
    step_cache_threshold: options.StepCacheThreshold = DEFAULTS.step_cache_threshold,
    step_cache_max_skips: options.StepCacheMaxSkips = DEFAULTS.step_cache_max_skips,
    step_cache_retention: options.StepCacheRetention = DEFAULTS.step_cache_retention,
    lora: options.Loras = None,
    report_error: options.ReportError = False,
    window: options.Window = DEFAULTS.latent_window_size,
    paddings: options.Paddings = None,
    history_codebook: options.HistoryCodebook = None,
    schedule: options.Schedule = None,
    overwrite: options.Overwrite = False,
    fps: options.Fps = DEFAULTS.fps,
    crf: options.Crf = DEFAULTS.crf,
    codec: options.Codec = DEFAULTS.codec,
    preview: options.Preview = None,
    png: options.Png = None,
    latents: options.Latents = None,
    frame_filter: options.FrameFilter = None,
    job: options.JobDir = None,
    no_job: options.NoJob = False,
    trace: options.Traces = None,
    json_progress: options.JsonProgress = False,
    quiet: options.Quiet = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    attention: options.Attention = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    vae_tiles: options.VaeTiles = None,
    component: options.ComponentOverrides = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
    debug: options.Debug = False,
) -> None:
    """Generate a video from an image and a prompt."""
    with readable_errors(debug=debug, is_json=json_progress):
        request = Request(
            image=image, prompt=prompt, negative_prompt=negative_prompt, seconds=seconds, **options.parse_order(order),
            allow_untrained=allow_untrained,
            size=options.parse_size(size), base_resolution=base_resolution, posterior=posterior, force=force, seed=seed,
            guidance_scale=guidance, cfg_scale=cfg, cfg_rescale=cfg_rescale, sampler=sampler,
            **options.apply_preset(preset, context, num_steps=steps, step_cache=step_cache),
            step_cache_threshold=step_cache_threshold,
            step_cache_max_skips=step_cache_max_skips, step_cache_retention=step_cache_retention,
            loras=options.parse_loras(lora), latent_window_size=window, fps=fps, crf=crf,
            codec=codec, prompt_blend=prompt_blend, end_image=end_image, end_image_use=end_image_use,
            end_image_strength=end_image_strength, loop=loop, guide_images=options.parse_guides(guide_image), video=extend, direction=direction,
            latent_paddings=options.parse_paddings(paddings),
            history_codebook=history_codebook, schedule=schedule,
        )  # fmt: skip
        config = EngineConfig(
            device=device, precision=precision, attention=attention, vram=vram, ram=ram,
            vae_tiles=vae_tiles, cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
        Rendering(
            request=request, model=model, config=config, components=options.parse_components(component),
            out=out, is_overwriting=overwrite, preview_dir=preview, png_dir=png, latents=latents, frame_filter=frame_filter,
            is_reporting_error=report_error,
            job_dir=_job_dir(job, no_job, config), traces=tuple(trace or ()),
            is_json=json_progress, is_quiet=quiet,
        ).run()  # fmt: skip


def _job_dir(job: Path | None, no_job: bool, config: EngineConfig) -> Path | None:
    """The folder that was asked for, or a new one in the cache folder."""
    if no_job:
        if job is not None:
            raise ConfigError("--job and --no-job exclude each other")
        return None
    return new_job_path(config.cache_path()) if job is None else job
