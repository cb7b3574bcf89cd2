"""Latents to frames inside the budget, section by section."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from torch import Tensor

from ..companions.section_decoder import OrderedDecoder
from ..companions.vae import DecodedFrames, SectionDecoder, VideoVAE
from ..device import memory_errors
from ..errors import InputError
from ..request.config import UNTRAINED_ORDERS, SamplingConfig
from ..request.sections import plan_sections
from ..weights.memory import JobMemory
from .frame_filter import FrameFilter, apply_filter
from .loaded_model import LoadedModel

T = TypeVar("T")
Decoder = SectionDecoder | OrderedDecoder


def decode_within(memory: JobMemory, vae: VideoVAE, decode: Callable[[], T]) -> T:
    """The result of ``decode``, which ``vae`` works for, inside the budget of ``memory``."""

    def prepare() -> None:
        memory.make_room_to_decode()
        # Jobs of one engine may take turns, and each has its own tiles.
        vae.use_tiles(memory.plan.vae_tile)

    prepare()
    with memory_errors("decode"):
        return memory.attempt("decode", decode, before_retry=prepare)


def filter_decoded(function: FrameFilter | None, decoded: DecodedFrames) -> DecodedFrames:
    """``decoded`` as the host's ``function`` wants it."""
    frames = apply_filter(function, decoded.frames, decoded.first_frame)
    return DecodedFrames(frames=frames, first_frame=decoded.first_frame)


def make_decoder(
    vae: VideoVAE,
    sampling: SamplingConfig,
    *,
    start_latent: Tensor | None,
    given: Tensor | None = None,
    num_leading: int = 1,
) -> Decoder:
    """The decoder of a job; arguments are those of :class:`SectionDecoder`."""
    window = sampling.latent_window_size
    if sampling.order in UNTRAINED_ORDERS:
        places = [plan.place for plan in plan_sections(sampling)]
        return OrderedDecoder(
            vae, places=places, window=window, start_latent=start_latent, num_leading=num_leading
        )
    return SectionDecoder(
        vae,
        order=sampling.order,
        window=window,
        num_sections=sampling.num_sections,
        start_latent=start_latent,
        given=given,
        num_leading=num_leading,
    )


def decode_latents(
    latents: Tensor, model: LoadedModel, *, order: str, window: int
) -> Iterator[DecodedFrames]:
    """Frames of a video of latents, in the order in which its sections were made; see :meth:`Engine.decode`.

    Raises:
        InputError: the shape is not that of whole sections, start latent first; raised at once.
        BudgetError: the size does not fit into the budget; raised at once.
    """
    if latents.ndim != 5 or latents.shape[0] != 1 or latents.shape[2] < 1 + window:
        raise InputError(f"latents must be [1, C, 1 + n * {window}, Y, X], got {tuple(latents.shape)}")
    num_sections, rest = divmod(latents.shape[2] - 1, window)
    if rest:
        raise InputError(
            f"latents must have 1 + n * {window} frames for a window of {window}, got {latents.shape[2]}"
        )
    sampling = SamplingConfig(num_sections=num_sections, order=order, latent_window_size=window)
    height, width = (8 * edge for edge in latents.shape[3:])
    job = model.memory.job(sampling, (height, width))
    return _decode_sections(latents, sampling, model, model.memory.plan(job))


def _decode_sections(
    latents: Tensor, sampling: SamplingConfig, model: LoadedModel, memory: JobMemory
) -> Iterator[DecodedFrames]:
    memory.make_room()
    window, vae = sampling.latent_window_size, model.vae
    decoder = make_decoder(vae, sampling, start_latent=latents[:, :, :1])
    for section in plan_sections(sampling):
        first = section.first_latent_frame
        part = latents[:, :, first : first + window]
        yield filter_decoded(model.frame_filter, decode_within(memory, vae, partial(decoder.push, part)))
