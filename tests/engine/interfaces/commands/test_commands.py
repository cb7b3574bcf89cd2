"""The command line: options, errors, exit codes. The engine is a fake; what it is asked for is checked."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import isoframe.engine
from isoframe.engine import EngineConfig, LoraStrength, Request, events
from isoframe.engine.errors import CheckpointError, NumericalError
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.media.video import Video

Handler = Callable[[events.Event], None]


class FakeEngine:
    """Reports the events of a job of two sections, made from the end, and writes a file of one byte."""

    loads: list[tuple[str, EngineConfig, Mapping[str, str]]]
    renders: list[tuple[Request, Path, dict[str, Any]]]
    failure: BaseException | None
    has_partial: bool

    @classmethod
    def load(
        cls, source: str, *, config: EngineConfig, components: Mapping[str, str], **_: object
    ) -> "FakeEngine":
        cls.loads.append((source, config, components))
        return cls()

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def render(self, request: Request, path: Path, *, on_event: Handler, **options: Any) -> Video:
        # An image that was read already still names its file.
        assert isinstance(request.image, os.PathLike)
        self.renders.append((replace(request, image=os.fspath(request.image)), path, options))
        for section in range(2):
            for step in range(3):
                on_event(step_event(section, step))
            on_event(events.SectionEvent(section=section, num_sections=2, num_final_frames=36, num_frames=73))
            if self.failure is not None:
                if self.has_partial:
                    partial = path.with_name(f"{path.stem}.partial.mp4")
                    self.failure.add_note(f"13 of 73 frames are kept in {partial}")
                    on_event(events.PartialEvent(path=partial, num_frames=13, num_video_frames=73))
                raise self.failure
        path.write_bytes(b"v")
        on_event(events.FileEvent(path=path))
        return Video(path=path, num_frames=73, fps=30, width=64, height=48, seconds=73 / 30)


def step_event(section: int, step: int) -> events.StepEvent:
    return events.StepEvent(
        section=section,
        num_sections=2,
        step=step,
        num_steps=3,
        is_computed=True,
        first_latent_frame=10 - 9 * section,
        x0=torch.zeros(1, 1, 9, 1, 1),
    )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    FakeEngine.loads, FakeEngine.renders = [], []
    FakeEngine.failure, FakeEngine.has_partial = None, False
    monkeypatch.setitem(vars(isoframe.engine), "Engine", FakeEngine)
    return FakeEngine


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "start.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


@contextmanager
def caplog_of(name: str) -> Iterator[list[logging.LogRecord]]:
    """What reaches the handlers of a logger; the library's own one writes to the real stderr."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger(name).addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger(name).removeHandler(handler)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def generate(image: Path, *arguments: object) -> Result:
    return run("generate", image, "--prompt", "it turns", "--out", image.parent / "out.mp4", *arguments)


def test_options_reach_the_request(engine: type[FakeEngine], image: Path, tmp_path: Path) -> None:
    result = generate(
        image, "--seconds", 3, "--order", "forward", "--steps", 7, "--seed", 5, "--guidance", 4.5, "--cfg", 2,
        "--cfg-rescale", 0.5, "--negative-prompt", "blur", "--step-cache", "teacache",
        "--step-cache-threshold", 0.2, "--sampler", "euler", "--window", 5, "--size", "64x96", "--fps", 24,
        "--crf", 20, "--posterior", "mode", "--force-size",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    request, path, _ = engine.renders[0]
    assert path == tmp_path / "out.mp4"
    assert request == Request(
        image=str(image), prompt="it turns", seconds=3, order="forward", num_steps=7, seed=5,
        guidance_scale=4.5, cfg_scale=2, cfg_rescale=0.5, negative_prompt="blur", step_cache="teacache",
        step_cache_threshold=0.2, sampler="euler", latent_window_size=5, size=(64, 96), fps=24, crf=20,
        posterior="mode", force=True,
    )  # fmt: skip


def test_loras_reach_the_request(engine: type[FakeEngine], image: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b:1.safetensors", "c", "d.safetensors")]
    for path in paths:
        path.touch()
    texts = [f"{paths[0]}:0.8", f"{paths[1]}", f"{paths[2]}:-1.5e-1@2", f"{paths[3]}:1@1,3-5"]
    result = generate(image, "--seconds", 8, *(part for text in texts for part in ("--lora", text)))
    assert result.exit_code == 0, result.output
    assert engine.renders[0][0].loras == (
        LoraStrength(source=str(paths[0]), strength=0.8),
        LoraStrength(source=str(paths[1])),
        LoraStrength(source=str(paths[2]), strength=-0.15, sections=(1,)),
        LoraStrength(source=str(paths[3]), strength=1.0, sections=(0, 2, 3, 4)),
    )


def test_options_reach_the_engine(engine: type[FakeEngine], image: Path, tmp_path: Path) -> None:
    result = generate(
        image, "--model", "models/mine", "--device", "cpu", "--precision", "bf16", "--cache-dir", tmp_path,
        "--local-files-only", "--vae-tiles", "--component", "vae=v", "--component", "text_encoder=t=1", "--preview",
        tmp_path / "previews",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    config = EngineConfig(
        device="cpu", precision="bf16", cache_dir=tmp_path, local_files_only=True, vae_tiles=True
    )
    assert engine.loads == [("models/mine", config, {"vae": "v", "text_encoder": "t=1"})]
    assert engine.renders[0][2]["preview_dir"] == tmp_path / "previews"


def test_a_revision_goes_with_a_model_of_the_hub(engine: type[FakeEngine], image: Path) -> None:
    assert generate(image, "--model", "owner/name", "--revision", "abc12").exit_code == 0
    assert engine.loads[0][0] == "owner/name@abc12"
    for model in ("demo", image.parent):
        result = generate(image, "--model", model, "--revision", "abc12")
        assert result.exit_code == 2
        assert f"--revision needs a model of the Hub (owner/name), got {model}" in result.stderr


def test_defaults_are_those_of_the_request(engine: type[FakeEngine], image: Path) -> None:
    assert generate(image).exit_code == 0
    assert engine.renders[0][0] == Request(image=str(image), prompt="it turns")
    assert engine.loads[0][1] == EngineConfig()


def test_result_is_the_only_line_on_stdout(engine: type[FakeEngine], image: Path) -> None:
    result = generate(image)
    path = re.escape(str(image.parent / "out.mp4"))
    assert re.fullmatch(
        rf"{path}: 73 frames, 2\.4 s, 48x64 \(height x width\), made in \d\.\d s\n", result.stdout
    )
    assert "inverted order: the end of the video comes first" in result.stderr
    assert "section 2/2 (0.0-1.2 s) step 3/3" in result.stderr


def test_quiet_prints_nothing(engine: type[FakeEngine], image: Path) -> None:
    assert generate(image, "--quiet").output == ""


def test_json_progress_is_one_object_per_line_and_nothing_else(engine: type[FakeEngine], image: Path) -> None:
    result = generate(image, "--json-progress")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [o["event"] for o in objects] == ["phase", *(["step"] * 3 + ["section"]) * 2, "file"]
    assert objects[1] == {
        "event": "step", "section": 0, "num_sections": 2, "step": 0, "num_steps": 3, "is_computed": True,
        "first_latent_frame": 10,
    }  # fmt: skip
    assert objects[-1]["path"] == str(image.parent / "out.mp4")
    assert result.stderr == ""


def test_json_progress_tells_a_failure_and_the_part_that_is_kept(
    engine: type[FakeEngine], image: Path
) -> None:
    engine.failure, engine.has_partial = CheckpointError("no such tensor"), True
    objects = [json.loads(line) for line in generate(image, "--json-progress").stdout.splitlines()]
    partial = str(image.parent / "out.partial.mp4")
    assert objects[-2] == {"event": "partial", "path": partial, "num_frames": 13, "num_video_frames": 73}
    assert objects[-1] == {
        "event": "failure", "error": "CheckpointError", "message": "no such tensor",
        "notes": [f"13 of 73 frames are kept in {partial}"], "exit_code": 1,
    }  # fmt: skip


def test_json_progress_tells_a_bad_option_and_an_unexpected_error_too(
    engine: type[FakeEngine], image: Path
) -> None:
    refused = json.loads(generate(image, "--json-progress", "--order", "x").stdout)
    assert (refused["event"], refused["error"], refused["exit_code"]) == ("failure", "ConfigError", 2)
    engine.failure = ZeroDivisionError("division by zero")
    result = generate(image, "--json-progress")
    assert result.exception is engine.failure
    assert json.loads(result.stdout.splitlines()[-1])["error"] == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--order", "invert"), "order must be one of auto, inverted, forward, endpoints, planned, custom, got 'invert'; did you mean 'inverted'?"),
        (("--precision", "bf61"), "precision must be one of fp32, bf16, fp16, int8, int8-weight, fp8, nf4, got 'bf61'; did you mean 'bf16'?"),
        (("--step-cache", "tea"), "step_cache must be one of none, teacache, magcache, got 'tea'"),
        (("--sampler", "unipcc"), "did you mean 'unipc'?"),
        (("--seconds", "0"), "seconds must be a positive number, got 0.0"),
        (("--seconds", "nan"), "seconds must be a positive number, got nan"),
        (("--seconds", "3601"), "seconds must be at most 3600, got 3601.0; force=True (--force) accepts more"),
        (("--steps", "0"), "num_steps must be an integer of at least 1, got 0"),
        (("--size", "64"), "--size must be HEIGHTxWIDTH such as 640x608, got '64'"),
        (("--size", "64x100"), "--size must be HEIGHTxWIDTH in multiples of 16, got 64x100; the nearest is 64x96"),
        (("--device", "gpu"), "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (("--lora", "none.safetensors:1"), "--lora must be FILE:STRENGTH: none.safetensors does not exist"),
        (("--lora", "a:1.2.3"), "--lora must be FILE:STRENGTH or FILE:STRENGTH@SECTIONS such as"),
        (("--lora", "a:1@0"), "--lora must be FILE:STRENGTH or FILE:STRENGTH@SECTIONS such as"),
        (("--lora", "a:1@5-3"), "--lora must be FILE:STRENGTH or FILE:STRENGTH@SECTIONS such as"),
        (("--lora", "a:1@1-9999999999"), "--lora must be FILE:STRENGTH or FILE:STRENGTH@SECTIONS such as"),
        (("--component", "vae"), "--component must be NAME=SOURCE such as vae=FOLDER, got 'vae'"),
        (("--component", "vae=a", "--component", "vae=b"), "--component names vae twice"),
    ],
)  # fmt: skip
def test_bad_value_is_one_line_and_exit_2(
    engine: type[FakeEngine], image: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = generate(image, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert engine.loads == []


@pytest.mark.parametrize("arguments", [("--nonsense",), ("--steps", "many")])
def test_unknown_option_or_wrong_type_is_exit_2(
    engine: type[FakeEngine], image: Path, arguments: tuple[str, ...]
) -> None:
    result = generate(image, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_existing_out_is_refused_before_any_work(engine: type[FakeEngine], image: Path) -> None:
    (image.parent / "out.mp4").write_bytes(b"precious")
    result = generate(image)
    assert result.exit_code == 1
    assert f"error: output {image.parent / 'out.mp4'} exists; pass --overwrite" in result.stderr
    assert (image.parent / "out.mp4").read_bytes() == b"precious"
    assert engine.loads == []


def test_overwrite_replaces_out(engine: type[FakeEngine], image: Path) -> None:
    (image.parent / "out.mp4").write_bytes(b"old")
    assert generate(image, "--overwrite").exit_code == 0
    assert engine.renders[0][2]["overwrite"] is True
    assert (image.parent / "out.mp4").read_bytes() == b"v"


def test_bad_request_makes_no_folder(engine: type[FakeEngine], image: Path) -> None:
    folder = image.parent / "new"
    result = generate(
        image.parent / "missing.png", "--out", folder / "out.mp4", "--png", folder, "--preview", folder
    )
    assert result.exit_code == 1
    assert not folder.exists()


def test_folder_as_out_is_refused(engine: type[FakeEngine], image: Path) -> None:
    result = generate(image, "--out", image.parent)
    assert result.exit_code == 1
    assert f"output must be a file, {image.parent} is a folder" in result.stderr


@pytest.mark.parametrize("option", ["--out", "--preview", "--png"])
def test_unwritable_folder_is_refused_before_any_work(
    engine: type[FakeEngine], image: Path, option: str
) -> None:
    # A file in the place of the folder stops every user, root too.
    (image.parent / "blocked").write_bytes(b"")
    path = image.parent / "blocked/below/x.mp4"
    result = generate(image, option, path)
    assert result.exit_code == 1
    assert f"cannot be written: {image.parent / 'blocked'} is a file, not a folder" in result.stderr
    assert engine.loads == []


def test_earlier_frames_are_refused_before_any_work(engine: type[FakeEngine], image: Path) -> None:
    (image.parent / "frame_00000.png").write_bytes(b"old")
    result = generate(image, "--png", image.parent)
    assert result.exit_code == 1
    assert "holds frame_00000.png; pass --overwrite" in result.stderr
    assert engine.loads == []
    assert generate(image, "--png", image.parent, "--overwrite").exit_code == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_refused(engine: type[FakeEngine], image: Path) -> None:
    folder = image.parent / "locked"
    folder.mkdir(mode=0o500)
    result = generate(image, "--out", folder / "x.mp4")
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr


def test_bad_image_is_refused_before_the_model_loads(engine: type[FakeEngine], image: Path) -> None:
    image.write_bytes(b"no image")
    result = generate(image)
    assert result.exit_code == 1
    assert str(image) in result.stderr
    assert result.stderr.count("\n") == 1
    assert engine.loads == []


@pytest.mark.parametrize(
    "failure",
    [
        CheckpointError("checkpoint lacks 3 tensors: a, b, c"),
        NumericalError("latents are not finite", section=0, step=2, backend="sdpa"),
        OSError(28, "No space left on device", "out.mp4"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_failure_of_the_engine_is_one_line_and_exit_1(
    engine: type[FakeEngine], image: Path, failure: Exception
) -> None:
    engine.failure = failure
    result = generate(image, "--json-progress")
    assert result.exit_code == 1
    expected = "out.mp4: No space left on device" if isinstance(failure, OSError) else str(failure)
    assert result.stderr == f"error: {expected}\n"
    assert "Traceback" not in result.output


def test_failure_names_the_partial_file(engine: type[FakeEngine], image: Path) -> None:
    engine.failure, engine.has_partial = CheckpointError("no such tensor"), True
    result = generate(image)
    assert result.exit_code == 1
    kept = f"13 of 73 frames are kept in {image.parent / 'out.partial.mp4'}"
    assert result.stderr.endswith(f"error: no such tensor\n{kept}\n")


def test_debug_keeps_the_traceback(engine: type[FakeEngine], image: Path) -> None:
    engine.failure = CheckpointError("checkpoint lacks 3 tensors")
    assert generate(image, "--debug").exception is engine.failure


def test_logging_is_left_as_it_was(engine: type[FakeEngine], image: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("isoframe", "isoframe.engine.checkpoints.hub")]
    before = [logger.level for logger in loggers]
    assert generate(image).exit_code == 0
    assert [logger.level for logger in loggers] == before


def test_licence_of_a_download_is_shown(engine: type[FakeEngine], image: Path) -> None:
    levels = {}

    class Downloading(FakeEngine):
        def render(self, request: Request, path: Path, **options: Any) -> Video:
            for name in ("isoframe.engine.checkpoints.hub", "isoframe.engine.sampling.denoiser"):
                levels[name] = logging.getLogger(name).getEffectiveLevel()
            return super().render(request, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(isoframe.engine), "Engine", Downloading)
        assert generate(image).exit_code == 0
    assert levels == {
        "isoframe.engine.checkpoints.hub": logging.INFO,
        "isoframe.engine.sampling.denoiser": logging.WARNING,
    }


def test_attempts_to_reach_the_hub_are_one_line_that_says_what_helps(
    engine: type[FakeEngine], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offline(FakeEngine):
        @classmethod
        def load(cls, source: str, **options: Any) -> FakeEngine:
            # The words of huggingface_hub 2.
            logger = logging.getLogger("huggingface_hub.utils._http")
            for attempt in range(1, 6):
                logger.warning("'%s' thrown while requesting HEAD https://huggingface.co/a/b", "no route")
                logger.warning(f"Retrying in 1s [Retry {attempt}/5].")
            logger.warning("something else")
            return super().load(source, **options)

    monkeypatch.setitem(vars(isoframe.engine), "Engine", Offline)
    with caplog_of("huggingface_hub") as records:
        result = generate(image)
    assert result.stderr.count("the Hugging Face Hub does not answer ('no route')") == 1
    assert "--local-files-only" in result.stderr
    assert [record.getMessage() for record in records] == ["something else"]


def test_programming_error_is_not_hidden(engine: type[FakeEngine], image: Path) -> None:
    engine.failure = ZeroDivisionError()
    assert generate(image).exception is engine.failure


def test_interrupt_names_the_partial_file(engine: type[FakeEngine], image: Path) -> None:
    engine.failure, engine.has_partial = KeyboardInterrupt(), True
    result = generate(image)
    assert result.exit_code == 130
    kept = f"13 of 73 frames are kept in {image.parent / 'out.partial.mp4'}"
    assert result.stderr.endswith(f"cancelled\n{kept}\n")


def test_interrupt_with_nothing_finished_says_so(engine: type[FakeEngine], image: Path) -> None:
    engine.failure = KeyboardInterrupt()
    result = generate(image)
    assert result.exit_code == 130
    assert result.stderr.endswith(
        "cancelled\nno frame of the video was finished, and no video file was written\n"
    )


@pytest.mark.parametrize(
    ("name", "exit_code", "summary"),
    [
        ("SIGINT", 130, "cancelled"),
        ("SIGTERM", 143, "stopped by SIGTERM"),
        ("SIGHUP", 129, "stopped by SIGHUP"),
    ],
)
def test_every_signal_to_stop_reaches_the_engine_and_names_itself(
    engine: type[FakeEngine],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    exit_code: int,
    summary: str,
) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"this platform has no {name}")
    number = getattr(signal, name)
    before = signal.getsignal(number)

    class Stopped(FakeEngine):
        @classmethod
        def load(cls, source: str, **options: Any) -> FakeEngine:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                # The second time, while the first is being dealt with, only tells what is going on.
                signal.raise_signal(number)
                raise
            raise AssertionError("the signal was lost")

    monkeypatch.setitem(vars(isoframe.engine), "Engine", Stopped)
    result = generate(image, "--json-progress")
    assert result.exit_code == exit_code
    assert result.stderr.splitlines()[0] == summary
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["event"], last["signal"], last["exit_code"]) == ("cancelled", name, exit_code)
    assert signal.getsignal(number) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_in_a_destructor_still_stops_the_job(
    engine: type[FakeEngine], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Destructor:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    class Interrupted(FakeEngine):
        @classmethod
        def load(cls, source: str, **options: Any) -> FakeEngine:
            # Python reports the exception and goes on.
            Destructor()
            return super().load(source, **options)

    monkeypatch.setitem(vars(isoframe.engine), "Engine", Interrupted)
    result = generate(image)
    assert result.exit_code == 130
    assert not (image.parent / "out.mp4").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("generate", "demo", "convert", "info"):
        assert command in result.stdout


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("isoframe ")


def test_a_preset_sets_steps_and_cache_and_what_is_given_stands(
    engine: type[FakeEngine], image: Path, tmp_path: Path
) -> None:
    def request_of(*arguments: str) -> tuple[int, str]:
        result = generate(image, *arguments, "--overwrite")
        assert result.exit_code == 0, result.output
        request = engine.renders[-1][0]
        return request.num_steps, request.step_cache

    assert request_of("--preset", "draft") == (15, "magcache")
    assert request_of("--preset", "final") == (25, "none") == request_of()
    assert request_of("--preset", "draft", "--steps", "4") == (4, "magcache")
    assert request_of("--preset", "balanced", "--step-cache", "teacache", "--steps", "25") == (25, "teacache")
    wrong = generate(image, "--preset", "fnal")
    assert (wrong.exit_code, "did you mean 'final'" in wrong.stderr) == (2, True)


def test_an_error_report_without_a_cache_is_refused_before_any_work(
    engine: type[FakeEngine], image: Path
) -> None:
    result = generate(image, "--report-error")
    assert (result.exit_code, "--report-error needs a step cache" in result.stderr) == (2, True)
    assert not engine.loads
