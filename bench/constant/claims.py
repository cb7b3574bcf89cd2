"""The promise that every second of video costs the same, put to the test.

The same job at several lengths; the verdict is one of equivalence: growth must be shown to be small, not merely fail to
show.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...engine.events import EventHandler
from ...engine.request.config import Request
from ..meters.job_cost import SECTION_PHASES, CostRecorder, JobCost, Meter
from ..meters.section_counts import FIRST_CONSTANT_SECTION, SectionCounts, count_sections, find_differences
from ..records.rows import Gate
from ..records.trend import Status, Trend, fit_trend

_logger = logging.getLogger(__name__)

LENGTHS = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0)
_MIB = 2**20
# The first two sections of a job warm up caches; the last one also decodes what the others held back.
_FIRST_TIMED, _LAST_TIMED = 2, -1
# Sections of the counted job: three that must be equal, and the last.
_COUNTED_SECTIONS = FIRST_CONSTANT_SECTION + 4
_COUNTED_STEPS = 2
_MAX_HOST_GROWTH = 40 * _MIB
# Peaks of shorter jobs are smaller: they never hold a section and the one before it.
_MIN_PEAK_SECTIONS = 2
# Folder in which a job keeps what is finished, beside its video.
JOB_FOLDER = "job"
# The file and what it is made of, segments or a whole job folder, and a little for indexes and rewritten notes.
_MAX_WRITE_FACTOR = 1.1
_MAX_MEASURING = 0.01

Render = Callable[[Request, Path, EventHandler], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One claim and what became of it.

    Attributes:
        claim: what is claimed, in a word or two.
        status: "inconclusive" where the measurement is too noisy or too short to tell.
        text: figures.
    """

    claim: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantResult:
    """Everything that :func:`measure_constant` found.

    Attributes:
        gate: whether the model's operations are right here.
        counts: of every section of the counted job.
        jobs: one a length, and repetitions with more sections.
        findings: the verdict, claim by claim.
    """

    gate: Gate
    counts: tuple[SectionCounts, ...]
    jobs: tuple[JobCost, ...]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 if every claim holds, 1 if one does not, 3 if one cannot be told."""
        statuses = {finding.status for finding in self.findings}
        return 1 if "failed" in statuses else 3 if "inconclusive" in statuses else 0


def measure_constant(
    render: Render,
    request: Request,
    *,
    gate: Gate,
    meter: Meter,
    lengths: Sequence[float] = LENGTHS,
    num_repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    reference_work: Callable[[], None] | None = None,
    tell: Callable[[JobCost], None] = lambda job: None,
) -> ConstantResult:
    """Count, run every length, judge.

    Args:
        render: makes the video of a request at a path and reports events, as ``Engine.render`` does.
        request: the job; its length is replaced.
        gate: the check of the operations that came before.
        meter: reads memory.
        lengths: seconds of video.
        num_repeats: how often the longest job is repeated with twice the sections while its time does not pass: what
            other programs cost looks like growth once, not each time.
        clock: seconds.
        reference_work: done beside the steps; the sections' time is then judged against its own.
        tell: gets every job when it is done.
    """
    counts = count_job(render, request)
    jobs: list[JobCost] = []

    def run(length: float) -> None:
        jobs.append(run_job(render, replace(request, seconds=length), meter, clock, reference_work))
        tell(jobs[-1])

    for length in sorted(lengths):
        run(length)
    for _ in range(num_repeats):
        found = judge_time(jobs[-1])
        if found.status == "passed":
            break
        longer = 2 * jobs[-1].length
        _logger.warning("%s: repeated with %g s", found.text, longer)
        run(longer)
    findings = [judge_gate(gate), judge_counts(counts), judge_time(jobs[-1]), judge_host_peak(jobs)]
    findings += [
        judge(jobs)
        for name, judge in (("peak_allocated", judge_device_peak), ("written", judge_written))
        if getattr(jobs[0], name) is not None
    ]
    findings.append(judge_measuring(jobs[-1]))
    return ConstantResult(gate=gate, counts=tuple(counts), jobs=tuple(jobs), findings=tuple(findings))


def count_job(render: Render, request: Request) -> list[SectionCounts]:
    """Counts of every section of a short job with few steps, which also warms up what a process does once."""
    section_seconds = 4 * request.latent_window_size / request.fps
    short = replace(
        request,
        seconds=_COUNTED_SECTIONS * section_seconds,
        num_steps=min(_COUNTED_STEPS, request.num_steps),
    )
    with tempfile.TemporaryDirectory() as folder:
        return count_sections(lambda on_event: render(short, Path(folder) / "counted.mp4", on_event))


def run_job(
    render: Render,
    request: Request,
    meter: Meter,
    clock: Callable[[], float],
    reference_work: Callable[[], None] | None = None,
) -> JobCost:
    """Make a video in a folder that is deleted, and record what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        recorder = CostRecorder(meter, clock, reference_work)
        render(request, path, recorder.on_event)
        kept = sum(file.stat().st_size for file in (path.parent / JOB_FOLDER).rglob("*") if file.is_file())
        record = recorder.finish(length=request.seconds, file_bytes=path.stat().st_size, kept_bytes=kept)
    _logger.info("%g s: %d sections", record.length, len(record.sections))
    return record


def judge_gate(gate: Gate) -> Finding:
    """Operations that are wrong are named; what they cost would mean nothing."""
    return Finding(claim="operations", status="passed" if gate.is_green else "failed", text=gate.text)


def judge_counts(counts: Sequence[SectionCounts]) -> Finding:
    """Whole numbers, equal for every section from 6 on."""
    differences = find_differences(counts)
    settled = counts[FIRST_CONSTANT_SECTION]
    text = "; ".join(differences) or (
        f"sections {FIRST_CONSTANT_SECTION + 1} to {len(counts) - 1} are equal: {settled.tokens} tokens, "
        f"{settled.operations} operations, {settled.allocated_bytes} bytes allocated, {settled.live_bytes} alive, "
        f"{settled.decoded_frames} frames decoded, {settled.encoded_frames} encoded, {settled.device_bytes} bytes "
        "copied to the device"
    )
    return Finding(claim="counters", status="failed" if differences else "passed", text=text)


def judge_time(job: JobCost) -> Finding:
    """Time of a section: the interval of its growth over the job must lie inside +-5 %."""
    trend = section_trend(job)
    text = f"time of a section over {job.length:g} s: {trend.describe()}"
    if job.references is not None:
        wall = section_trend(job, is_relative=False)
        text += f" against reference work done beside it; by the wall clock {wall.growth:+.2%}"
    if trend.status == "failed":
        text += f"; it comes from {_growing_phase(job)}"
    return Finding(claim="time", status=trend.status, text=text)


def section_trend(job: JobCost, phase: str | None = None, *, is_relative: bool = True) -> Trend:
    """Trend of the sections' time, or of one phase of it; against the reference work where there was any."""
    sections = job.sections
    values = [section.total if phase is None else section.seconds.get(phase, 0.0) for section in sections]
    references = job.references
    if is_relative and references is not None:
        values = [value / reference for value, reference in zip(values, references, strict=True)]
    return fit_trend(values[_FIRST_TIMED:_LAST_TIMED], num_sections=len(sections))


def _growing_phase(job: JobCost) -> str:
    """The phase whose seconds change most over the job."""
    found = {phase for section in job.sections for phase in section.seconds}

    def change(phase: str) -> float:
        trend = section_trend(job, phase)
        return abs(trend.growth * trend.mean)

    return max((phase for phase in SECTION_PHASES if phase in found), key=change)


def judge_device_peak(jobs: Sequence[JobCost]) -> Finding:
    """Largest device memory of tensors: the same number of bytes at every length."""
    peaks = {job.length: job.peak_allocated or 0 for job in _comparable(jobs)}
    return _judge_peaks("device peak", peaks, 0)


def judge_host_peak(jobs: Sequence[JobCost]) -> Finding:
    """Largest resident set: within 40 MiB at every length."""
    peaks = {job.length: job.peak_rss for job in _comparable(jobs)}
    return _judge_peaks("host peak", peaks, _MAX_HOST_GROWTH)


def _comparable(jobs: Sequence[JobCost]) -> list[JobCost]:
    return [job for job in jobs if len(job.sections) >= _MIN_PEAK_SECTIONS]


def _judge_peaks(claim: str, peaks: dict[float, int], limit: int) -> Finding:
    if len(peaks) < 2:
        return Finding(
            claim=claim, status="inconclusive", text="two lengths of 2 or more sections are needed"
        )
    difference = max(peaks.values()) - min(peaks.values())
    figures = ", ".join(f"{length:g} s {peak / _MIB:.1f} MiB" for length, peak in peaks.items())
    return Finding(
        claim=claim,
        status="passed" if difference <= limit else "failed",
        text=f"{figures}: they differ by {difference / _MIB:.1f} MiB (limit {limit / _MIB:.0f})",
    )


def judge_written(jobs: Sequence[JobCost]) -> Finding:
    """Bytes written: every frame once where it is kept and once in the file, every latent once, at every length."""
    factors = {job.length: (job.written or 0) / _needed_bytes(job) for job in jobs}
    figures = ", ".join(f"{length:g} s {factor:.2f}" for length, factor in factors.items())
    is_reached = max(factors.values()) <= _MAX_WRITE_FACTOR
    return Finding(
        claim="bytes written",
        status="passed" if is_reached else "failed",
        text=f"times the size of the file and of what is kept of the job: {figures} (limit {_MAX_WRITE_FACTOR})",
    )


def _needed_bytes(job: JobCost) -> int:
    """The file, and the job folder; without one, segments as large as the file that are deleted in the end."""
    return job.file_bytes + (job.kept_bytes or job.file_bytes)


def judge_measuring(job: JobCost) -> Finding:
    """Measuring must cost less than 1 % of what it measures."""
    share = job.measuring_share
    return Finding(
        claim="measuring",
        status="passed" if share < _MAX_MEASURING else "inconclusive",
        text=f"takes {share:.3%} of a section (limit {_MAX_MEASURING:.0%})",
    )
