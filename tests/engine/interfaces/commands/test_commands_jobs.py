"""The commands that keep, list, continue and change jobs, with the built-in model."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.jobs.folder import JobFolder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFRAME_CACHE", str(tmp_path / "cache"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def generate(folder: Path, *arguments: object) -> Result:
    """Two sections of four frames."""
    image = folder / "start.png"
    Image.new("RGB", (64, 64), (200, 60, 40)).save(image)
    return run(
        "generate", image, "--prompt", "a red circle moves right", "--out", folder / "video.mp4", "--seconds",
        0.27, "--steps", 2, "--window", 1, "--device", "cpu", *arguments,
    )  # fmt: skip


def test_a_job_is_kept_listed_changed_and_cleaned(tmp_path: Path) -> None:
    made = generate(tmp_path)
    assert made.exit_code == 0
    (job,) = (tmp_path / "cache" / "jobs").iterdir()
    assert f"the job is kept in {job}" in made.stderr
    listed = json.loads(run("jobs", "list", "--json").stdout)
    assert (listed["name"], listed["state"], listed["num_finished_sections"]) == (job.name, "done", 2)
    assert run("jobs", "list").stdout.startswith(f"{job.name}  done     2/2 sections  ")

    refused = run("redo", job.name, "--section", 2, "--seed", 7)
    assert refused.exit_code == 1
    assert "pass --overwrite" in refused.stderr
    assert JobFolder.open(job).redos == ()
    before = (tmp_path / "video.mp4").read_bytes()
    redone = run("redo", job.name, "--section", 2, "--seed", 7, "--out", tmp_path / "new.mp4")
    assert redone.exit_code == 0
    assert "1 of 2 sections are finished" in redone.stderr
    assert (tmp_path / "video.mp4").read_bytes() == before != (tmp_path / "new.mp4").read_bytes()

    assert run("jobs", "clean").stdout == f"removed {job}\n"
    assert not job.exists()
    assert (tmp_path / "video.mp4").exists()
    assert run("jobs", "list").stdout == ""


def test_a_stopped_job_is_resumed_by_its_folder_and_cleaned_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(
            "isoframe.engine.jobs.run.JobRun.keep_segment",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        stopped = generate(tmp_path, "--job", tmp_path / "job")
    assert stopped.exit_code == 130
    assert f"to go on: isoframe resume {tmp_path / 'job'}" in stopped.stderr
    assert not (tmp_path / "cache" / "jobs").exists()
    resumed = run("resume", tmp_path / "job")
    assert resumed.exit_code == 0
    assert "1 of 2 sections are finished" in resumed.stderr
    assert (tmp_path / "video.mp4").exists()


def test_unfinished_jobs_stay_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "isoframe.engine.jobs.run.JobRun.keep_latents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert generate(tmp_path).exit_code == 130
    (job,) = (tmp_path / "cache" / "jobs").iterdir()
    assert run("jobs", "clean").stdout == ""
    assert run("jobs", "clean", "--unfinished").stdout == f"removed {job}\n"


def test_no_job_keeps_nothing(tmp_path: Path) -> None:
    made = generate(tmp_path, "--no-job")
    assert made.exit_code == 0
    assert "the job is kept" not in made.stderr
    assert not (tmp_path / "cache" / "jobs").exists()
    both = generate(tmp_path, "--no-job", "--job", tmp_path / "job")
    assert both.exit_code == 2
    assert "exclude each other" in both.stderr


def test_a_folder_that_is_no_job_is_one_line(tmp_path: Path) -> None:
    for command in (("resume", tmp_path), ("redo", tmp_path, "--section", 1, "--seed", 2)):
        result = run(*command)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {tmp_path} is no job folder")
        assert len(result.stderr.splitlines()) == 1
