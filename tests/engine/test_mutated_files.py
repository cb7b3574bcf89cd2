"""Files that are damaged at random are read, or refused by an error of the engine; nothing hangs, nothing else is written."""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from lora_cases import in_peft_names, layer_shapes, random_lora, read_lora, saved
from mutations import mutants
from PIL import Image
from tiny_models import saved_model, tiny_model

from isoframe.engine import IsoframeError
from isoframe.engine.companions.components import find_components
from isoframe.engine.companions.encoders import load_tokenizer, prepare_image
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.media.images import load_image
from isoframe.engine.media.source_video import decode_frames
from isoframe.engine.media.video import read_video_info
from isoframe.engine.weights.store import open_store

FIRST_VERSION = Path(__file__).parents[1] / "fixtures" / "first_version"
SHAPES = layer_shapes(tiny_model())
MAX_SECONDS = 60
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
# Opened to be written to, from now on; of Python's own files alone.
_written: list[str] = []
sys.addaudithook(
    lambda event, args: (
        _written.append(str(args[0]))
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        else None
    )
)


def image(format: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"image.{format}"
        PICTURE.save(path, format=format, **({"exif": PICTURE.getexif()} if format == "JPEG" else {}))
        return path

    return make


def copied(name: str) -> Callable[[Path], Path]:
    """One of the files that the first version left, with the folder that it is in."""

    def make(folder: Path) -> Path:
        source = FIRST_VERSION / name
        shutil.copytree(source.parent, folder / "copy")
        return folder / "copy" / source.name

    return make


def other_video(format: str, codec: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"video.{format}"
        with av.open(str(path), "w", format=format) as container:
            stream = container.add_stream(codec, rate=30)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(6):
                container.mux(stream.encode(av.VideoFrame.from_image(PICTURE)))
            container.mux(stream.encode(None))
        return path

    return make


def checkpoint(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        saved_model(folder / "model")
        return folder / "model" / name

    return make


def lora(folder: Path) -> Path:
    state = in_peft_names(random_lora(SHAPES))
    config = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})
    return saved(folder / "lora.safetensors", state, metadata={"lora_adapter_metadata": config})


def tokenizer(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(find_components("demo").ref("tokenizer").fetch(), folder / "tokenizer")
        return folder / "tokenizer" / name

    return make


def processor(folder: Path) -> Path:
    shutil.copytree(find_components("demo").ref("feature_extractor").fetch(), folder / "processor")
    return folder / "processor" / "preprocessor_config.json"


def profile(folder: Path) -> Path:
    saved_model(folder / "model")
    path = folder / "model" / "isoframe.json"
    path.write_text(
        '{"buckets": [[64, 64], [48, 80]], "order": "forward", "prompt_template": "a {} b", "crop_start": 3}'
    )
    return path


def read_video(path: Path) -> None:
    read_video_info(path)
    for _ in decode_frames(path):
        pass


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    **{format: (image(format), load_image) for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")},
    "mp4": (copied("inverted.mp4"), read_video),
    "mkv": (other_video("matroska", "ffv1"), read_video),
    "avi": (other_video("avi", "mpeg4"), read_video),
    "weights": (
        checkpoint("diffusion_pytorch_model.safetensors"),
        lambda path: open_transformer(path.parent),
    ),
    "config": (checkpoint("config.json"), lambda path: open_transformer(path.parent)),
    "profile": (profile, lambda path: find_components(path.parent)),
    "lora": (lora, lambda path: read_lora(path, SHAPES)),
    "tokenizer": (tokenizer("tokenizer.json"), lambda path: load_tokenizer(path.parent)),
    "tokenizer-config": (tokenizer("tokenizer_config.json"), lambda path: load_tokenizer(path.parent)),
    "processor": (processor, lambda path: prepare_image(PICTURE, path.parent)),
    "record": (copied("jobs/lora/job.json"), lambda path: JobFolder.open(path.parent).status()),
    "redos": (copied("jobs/redone/redos.json"), lambda path: JobFolder.open(path.parent).status()),
    "manifest": (copied("store/manifest.json"), lambda path: open_store(path.parent)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [12, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, tell: Callable[[str], None], kind: str, number: int
) -> None:
    make, read = KINDS[kind]
    path = make(tmp_path)
    whole = path.read_bytes()
    read(path)
    _written.clear()
    outcomes: Counter[str] = Counter()
    for content in mutants(whole, number, seed=number):
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            read(path)
            outcomes["read"] += 1
        except IsoframeError:
            outcomes["refused"] += 1
        assert time.perf_counter() - start < MAX_SECONDS
    tell(f"{number} damaged files of kind {kind}: {dict(outcomes)}, 0 tracebacks")
    assert outcomes.total() == number
    assert [name for name in _written if not Path(name).is_relative_to(tmp_path)] == []
