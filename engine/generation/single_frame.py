"""One latent frame alone, as it would come later in a video."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..companions.vae import to_uint8
from ..events import EventHandler
from ..files import make_folder
from ..jobs.run import UnkeptRun
from ..media.png_writer import save_png
from ..output_paths import check_apart, check_png_path
from ..request.config import Request
from .decoding import decode_within
from .frame_filter import apply_filter
from .generation import ignore, open_generation
from .loaded_model import LoadedModel


def write_frame(
    request: Request,
    path: Path,
    model: LoadedModel,
    *,
    target_index: int,
    overwrite: bool,
    on_event: EventHandler | None,
) -> Path:
    """Write the frame as a PNG; arguments and errors are those of :meth:`Engine.render_frame`."""
    check_png_path(path, overwrite=overwrite)
    check_apart([path], [request.image])
    request = replace(
        request,
        seconds=4 / request.fps,
        latent_window_size=1,
        order="inverted",
        section_order=None,
        target_index=target_index,
    )
    job = open_generation(request, model)
    metadata = job.metadata()
    with closing(job.sections(on_event or ignore, UnkeptRun(job.inputs.request, metadata))) as sections:
        latents = next(sections).latents
    decoded = decode_within(job.memory, model.vae, lambda: model.vae.decode(latents))
    frames = apply_filter(model.frame_filter, to_uint8(decoded[0].cpu()), 0)
    make_folder("output", path.parent)
    save_png(frames[0], path, json.dumps(metadata), overwrite=overwrite)
    return path
