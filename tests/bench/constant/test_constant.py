"""``isoframe bench constant``: the demo keeps the promise, and every way of breaking it is caught and named."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.constant import command as constant_command
from isoframe.bench.constant.claim_rows import ConstantSubject
from isoframe.bench.constant.claims import (
    ConstantResult,
    count_job,
    judge_counts,
    judge_written,
    measure_constant,
    run_job,
)
from isoframe.bench.meters.job_cost import CostRecorder
from isoframe.bench.meters.memory_meter import MemoryMeter, MemoryReading
from isoframe.bench.meters.section_counts import SectionCounts
from isoframe.bench.operations.correctness import check_operations
from isoframe.bench.records.rows import Gate, read_rows
from isoframe.bench.subjects.reference_work import ReferenceWork
from isoframe.engine import Engine, EngineConfig, Request
from isoframe.engine.companions.vae import DecodedFrames, SectionDecoder
from isoframe.engine.demo import find_example
from isoframe.engine.events import Event, EventHandler, FileEvent, PhaseEvent, SectionEvent, StepEvent
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.model.packing import ContextGroup, PackedSection
from isoframe.kernels import KERNELS

CPU = torch.device("cpu")
GREEN = Gate(is_green=True, text="operations agree")
MIB = 2**20


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("demo", config=EngineConfig(device="cpu"))


def make_request(window: int = 2) -> Request:
    image, prompt = find_example(None)
    return Request(image=str(image), prompt=prompt, num_steps=2, latent_window_size=window)


def render_with(engine: Engine) -> Callable[[Request, Path, EventHandler], object]:
    return lambda request, path, on_event: engine.render(request, path, on_event=on_event)


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_every_section_of_the_demo_from_6_on_does_exactly_the_same(engine: Engine, order: str) -> None:
    request = dataclasses.replace(make_request(4 if order == "inverted" else 2), order=order)
    counts = count_job(render_with(engine), request)
    assert len(set(counts[5:-1])) == 1
    assert len(counts[5:-1]) == 3
    assert judge_counts(counts).status == "passed"
    settled, window = counts[5], request.latent_window_size
    # History of 2 + 2 + 16 frames in cells of 1, 2 and 4 frames beside the window; 4 x 4 cells of two latents.
    assert settled.tokens == 16 * (window + 2) + 4 + 4
    # Two windows are decoded together, one is encoded.
    assert (settled.decoded_frames, settled.encoded_frames) == (8 * window - 3, 4 * window)
    assert settled.operations > 1000
    assert settled.allocated_bytes > settled.live_bytes > 3 * 4 * window * 64 * 64
    assert settled.device_bytes == 0


def grow_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames more in every section."""
    pack, num_packed = PackedTransformer.pack_section, 0

    def pack_more(self: PackedTransformer, groups: list[ContextGroup], *rest: Any) -> PackedSection:
        nonlocal num_packed
        num_packed += 1
        far, middle, near = groups
        more = torch.cat([middle.latents] * num_packed, dim=2)
        middle = dataclasses.replace(middle, latents=more, indices=range(2 * num_packed))
        return pack(self, [far, middle, near], *rest)

    monkeypatch.setattr(PackedTransformer, "pack_section", pack_more)


def leak_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame of every section is kept."""
    push, leaked = SectionDecoder.push, []

    def push_and_keep(self: SectionDecoder, latents: Tensor) -> DecodedFrames:
        decoded = push(self, latents)
        leaked.append(decoded.frames[:1].clone())
        return decoded

    monkeypatch.setattr(SectionDecoder, "push", push_and_keep)


def break_kernel(monkeypatch: pytest.MonkeyPatch, name: str = "modulated_layer_norm") -> None:
    """A result that is a thousandth too large."""
    spec = KERNELS[name]

    def wrong(*args: Any) -> Any:
        result = spec.op(*args)
        (args[spec.mutates[0]] if spec.mutates else result).mul_(1.001)
        return result

    monkeypatch.setitem(KERNELS, name, dataclasses.replace(spec, op=wrong))


def test_a_growing_history_is_caught(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    grow_history(monkeypatch)
    finding = judge_counts(count_job(render_with(engine), make_request()))
    assert finding.status == "failed"
    assert "tokens 92 in section 6, 96 in section 7" in finding.text
    assert "allocated_bytes" in finding.text


def test_a_leak_of_one_frame_a_section_is_caught(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    leak_frames(monkeypatch)
    finding = judge_counts(count_job(render_with(engine), make_request()))
    assert finding.status == "failed"
    found = finding.text.split()
    assert found[0] == "live_bytes"
    assert int(found[5]) - int(found[1]) == 64 * 64 * 3


@pytest.mark.parametrize(
    ("sabotage", "options", "named"),
    [
        (grow_history, ["--counters"], "counters       FAILS: tokens 92 in section 6, 96 in section 7"),
        (leak_frames, ["--counters"], "counters       FAILS: live_bytes "),
        (
            break_kernel,
            ["--lengths", "0.2", "--repeats", "0"],
            "operations     FAILS: modulated_layer_norm: ",
        ),
    ],
)
def test_the_command_exits_with_1_and_names_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, sabotage: Callable[..., None], options: list[str], named: str
) -> None:
    sabotage(monkeypatch)
    result = run("--window", 2, "--steps", 1, "--device", "cpu", *options)
    assert (result.exit_code, named in result.stdout) == (1, True), result.output


def test_keeping_a_job_is_a_phase_of_every_section_and_its_bytes_are_needed() -> None:
    subject = ConstantSubject.open("demo", EngineConfig(device="cpu"), has_job_folder=True)
    job = run_job(
        subject.render, dataclasses.replace(make_request(), seconds=0.6), MemoryMeter(CPU), time.perf_counter
    )
    assert len(job.sections) == 2
    assert all(section.seconds["checkpoint"] > 0 for section in job.sections)
    # Latents in fp32 beside the segments.
    assert job.kept_bytes > 2 * 4 * 16 * 2 * 8 * 8 + job.file_bytes / 2
    assert judge_written([job]).status == "passed"
    assert judge_written([dataclasses.replace(job, kept_bytes=0)]).status == "failed"


def test_frames_that_are_encoded_again_are_caught(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoframe.engine.media.video import VideoWriter

    write = VideoWriter.write

    def write_partial_too(self: VideoWriter, frames: Tensor, first_frame: int) -> None:
        write(self, frames, first_frame)
        for segment in list(self._segments):
            self._spool.append(self._format, frames[:1].expand(segment.num_frames, -1, -1, -1).numpy(), 0)

    monkeypatch.setattr(VideoWriter, "write", write_partial_too)
    finding = judge_counts(count_job(render_with(engine), make_request()))
    assert finding.status == "failed"
    assert "encoded_frames 48 in section 6, 56 in section 7" in finding.text


def test_the_check_draws_the_same_inputs_every_time_and_leaves_the_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[float] = []
    spec = KERNELS["gated_residual"]

    def make_inputs(*args: Any) -> Any:
        inputs = spec.make_inputs(*args)
        drawn.append(float(inputs[0].sum()))
        return inputs

    monkeypatch.setitem(KERNELS, "gated_residual", dataclasses.replace(spec, make_inputs=make_inputs))
    state = torch.get_rng_state()
    check_operations(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    check_operations(CPU)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["modulated_layer_norm", "gated_residual", "qk_norm_rope"])
def test_a_wrong_kernel_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert check_operations(CPU).is_green
    break_kernel(monkeypatch, name)
    gate = check_operations(CPU)
    assert not gate.is_green
    assert gate.text.startswith(f"{name}: ")


def step_event(section: int, num_sections: int) -> StepEvent:
    return StepEvent(
        section=section, num_sections=num_sections, step=0, num_steps=1, is_computed=True, first_latent_frame=0,
        x0=torch.zeros(0),
    )  # fmt: skip


class Machine:
    """A clock, a memory meter and a job that are all made up.

    Attributes:
        seconds: cost of a phase in a section, by phase.
        peak: resident set in a section.
        slowness: factor on everything, by the time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.slowness: Callable[[float], float] = lambda now: 1.0
        self.reads = 0
        self.read_seconds = 1e-4
        self.seconds: dict[str, Callable[[int], float]] = {
            "pack": lambda section: 0.01,
            "denoise": lambda section: 1.0,
            "decode": lambda section: 0.5,
            "encode": lambda section: 0.05,
        }
        self.peak: Callable[[int], int] = lambda section: 500 * MIB
        self.device_peak: Callable[[int], int | None] = lambda section: None
        self.written: Callable[[int], int] = lambda section: 2000
        self.section = 0
        self.total_written = 0

    def clock(self) -> float:
        return self.now

    def work(self, seconds: float = 0.002) -> None:
        self.now += seconds * self.slowness(self.now)

    def synchronize(self) -> None:
        pass

    def read(self) -> MemoryReading:
        self.reads += 1
        self.now += self.read_seconds
        return MemoryReading(
            rss=400 * MIB,
            peak_rss=self.peak(self.section),
            peak_allocated=self.device_peak(self.section),
            written=self.total_written,
        )

    def render(self, request: Request, path: Path, on_event: EventHandler) -> None:
        for event in self.events(request.num_sections):
            on_event(event)
        path.write_bytes(bytes(1000 * request.num_sections))

    def events(self, num_sections: int) -> Iterator[Event]:
        yield PhaseEvent(phase="prepare")
        for self.section in range(num_sections):
            for phase, seconds in self.seconds.items():
                yield PhaseEvent(phase=phase)
                self.work(seconds(self.section))
                if phase == "denoise":
                    yield step_event(self.section, num_sections)
            self.total_written += self.written(self.section)
            yield SectionEvent(
                section=self.section,
                num_sections=num_sections,
                num_final_frames=0,
                num_frames=36 * num_sections,
            )
        yield PhaseEvent(phase="write")
        yield FileEvent(path=Path("video.mp4"))


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="module")
def counted(engine: Engine) -> list[SectionCounts]:
    return count_job(render_with(engine), make_request())


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch, counted: list[SectionCounts]) -> None:
    """The counted job is real, and counted once."""
    monkeypatch.setattr("isoframe.bench.constant.claims.count_job", lambda render, request: counted)


def measure(
    machine: Machine,
    lengths: tuple[float, ...] = (5, 30, 120),
    num_repeats: int = 0,
    gate: Gate = GREEN,
    has_reference: bool = False,
) -> ConstantResult:
    request = dataclasses.replace(make_request(9), num_steps=25)
    return measure_constant(
        machine.render, request, gate=gate, meter=machine, lengths=lengths, num_repeats=num_repeats,
        clock=machine.clock, reference_work=machine.work if has_reference else None,
    )  # fmt: skip


def statuses(result: ConstantResult) -> dict[str, str]:
    return {finding.claim: finding.status for finding in result.findings}


def text_of(result: ConstantResult, claim: str) -> str:
    return next(finding.text for finding in result.findings if finding.claim == claim)


@pytest.mark.usefixtures("counts")
def test_equal_sections_pass_at_every_length(machine: Machine) -> None:
    result = measure(machine)
    assert result.exit_code == 0
    assert set(statuses(result)) == {
        "operations", "counters", "time", "host peak", "bytes written", "measuring"
    }  # fmt: skip
    assert [len(job.sections) for job in result.jobs] == [4, 25, 100]
    first = result.jobs[0].sections[0]
    assert dict(first.seconds) == pytest.approx(
        {"pack": 0.01, "denoise": 1, "decode": 0.5, "encode": 0.05, "rest": 0}
    )


@pytest.mark.usefixtures("counts")
def test_wrong_operations_fail_the_measurement_and_are_named(machine: Machine) -> None:
    result = measure(
        machine, gate=Gate(is_green=False, text="gated_residual: relative RMS error 1e-3 > 1e-6")
    )
    assert (result.exit_code, statuses(result)["operations"]) == (1, "failed")
    assert text_of(result, "operations").startswith("gated_residual")


@pytest.mark.usefixtures("counts")
def test_a_slow_copy_is_caught_and_its_phase_is_named(machine: Machine) -> None:
    machine.seconds["pack"] = lambda section: 0.01 + 0.002 * section
    result = measure(machine)
    assert (result.exit_code, statuses(result)["time"]) == (1, "failed")
    assert text_of(result, "time").endswith("it comes from pack")


@pytest.mark.usefixtures("counts")
def test_noise_is_inconclusive_and_repeated_with_twice_the_sections(machine: Machine) -> None:
    machine.seconds["denoise"] = lambda section: 0.5 + (section * 7919 % 13) / 3
    assert measure(machine).exit_code == 3
    result = measure(machine, num_repeats=2)
    assert [len(job.sections) for job in result.jobs] == [4, 25, 100, 200, 400]


@pytest.mark.usefixtures("counts")
def test_load_that_passes_is_not_taken_for_growth(machine: Machine) -> None:
    denoise = machine.seconds["denoise"]
    # Other programs run for the last 40 sections of the 120 s job, and never again.
    machine.seconds["denoise"] = lambda section: denoise(section) + 0.2 * (140 < machine.now < 220)
    result = measure(machine, num_repeats=2)
    assert len(result.jobs[-1].sections) == 200
    assert statuses(result)["time"] == "passed"
    machine.seconds["denoise"] = lambda section: denoise(section) + 0.002 * section
    assert statuses(measure(machine, num_repeats=2))["time"] == "failed"


@pytest.mark.usefixtures("counts")
def test_a_machine_that_slows_down_is_told_from_work_that_grows(machine: Machine) -> None:
    machine.slowness = lambda now: 1 + now / 300
    assert statuses(measure(machine))["time"] == "failed"
    machine.now = 0.0
    result = measure(machine, has_reference=True)
    assert statuses(result)["time"] == "passed"
    assert "against reference work done beside it; by the wall clock +" in text_of(result, "time")


@pytest.mark.usefixtures("counts")
def test_growth_is_seen_on_a_machine_that_gets_faster(machine: Machine) -> None:
    machine.seconds = {"pack": lambda section: 0, "denoise": lambda section: 1 + section / 500}
    machine.slowness = lambda now: 1 / (1 + machine.section / 500)
    assert statuses(measure(machine))["time"] == "passed"
    assert statuses(measure(machine, has_reference=True))["time"] == "failed"


def test_reference_work_belongs_to_no_phase(machine: Machine) -> None:
    recorder = CostRecorder(machine, machine.clock, machine.work)
    for event in machine.events(10):
        recorder.on_event(event)
    record = recorder.finish(length=12, file_bytes=1)
    assert sum(section.total for section in record.sections) == pytest.approx(15.6)
    assert record.references == pytest.approx([0.002] * 10)
    assert record.measuring == pytest.approx(52 * machine.read_seconds)


def test_reference_work_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    ReferenceWork()()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("counts")
@pytest.mark.parametrize(("growth", "exit_code"), [(39, 0), (41, 1)])
def test_host_memory_may_differ_by_40_mib(machine: Machine, growth: int, exit_code: int) -> None:
    machine.peak = lambda section: (500 + growth * (section > 30)) * MIB
    result = measure(machine)
    assert (result.exit_code, f"differ by {growth}.0 MiB" in text_of(result, "host peak")) == (
        exit_code,
        True,
    )


@pytest.mark.usefixtures("counts")
@pytest.mark.parametrize(("num_bytes", "exit_code"), [(0, 0), (1, 1)])
def test_device_memory_may_not_differ_by_a_byte(machine: Machine, num_bytes: int, exit_code: int) -> None:
    machine.device_peak = lambda section: 10**9 + num_bytes * (section > 30)
    result = measure(machine)
    assert (result.exit_code, statuses(result)["device peak"] == "failed") == (exit_code, bool(exit_code))


@pytest.mark.usefixtures("counts")
def test_a_file_that_is_written_anew_after_every_section_is_caught(machine: Machine) -> None:
    machine.written = lambda section: 1000 * section
    result = measure(machine)
    assert (result.exit_code, statuses(result)["bytes written"]) == (1, "failed")


@pytest.mark.usefixtures("counts")
def test_measuring_that_costs_a_per_cent_tells_nothing(machine: Machine) -> None:
    machine.read_seconds = 0.004
    result = measure(machine)
    assert (result.exit_code, statuses(result)["measuring"]) == (3, "inconclusive")


def test_measuring_reads_memory_once_a_phase_and_belongs_to_no_phase(machine: Machine) -> None:
    recorder = CostRecorder(machine, machine.clock)
    before = machine.reads
    for event in machine.events(10):
        recorder.on_event(event)
    record = recorder.finish(length=12, file_bytes=1)
    # Four phases and the rest of each section, then "prepare" and "write".
    assert machine.reads - before == 5 * 10 + 2
    assert record.measuring == pytest.approx(52 * machine.read_seconds)
    assert sum(section.total for section in record.sections) == pytest.approx(15.6)
    assert record.measuring_share < 0.01


def test_a_reading_costs_less_than_a_hundredth_of_a_demo_section() -> None:
    meter, start = MemoryMeter(CPU), time.process_time()
    for _ in range(50):
        meter.read()
    # A section of the demo takes half a second and is read five times.
    assert (time.process_time() - start) / 50 * 5 < 0.01 * 0.5


def test_peak_is_seen_although_the_memory_is_free_again() -> None:
    meter = MemoryMeter(CPU)
    meter.read()
    torch.ones(2**26).sum()
    assert meter.read().peak_rss - meter.read().rss > 200 * MIB


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["constant", *map(str, arguments)])


def test_command_writes_rows_and_its_verdict_is_the_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    result = run(
        "--lengths", "0.6,1.2", "--window", 2, "--steps", 2, "--repeats", 0, "--device", "cpu", "--json", path
    )
    # So few sections cannot tell the growth of the time.
    assert result.exit_code in (1, 3), result.output
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:3]] == [
        ["0.6", "s", "2"],
        ["1.2", "s", "4"],
    ]
    assert "counters       holds: sections 6 to 8 are equal: 72 tokens" in result.stdout
    rows = {(row.case, row.variant): row for row in read_rows(path)}
    assert len(rows["constant-section", "1.2 s"].values) == 4
    assert rows["constant-count-tokens", "sections 6 on"].values == (72.0,) * 3
    assert rows["constant-host-peak", "1.2 s"].unit == "B"
    assert rows["constant-section", "1.2 s"].settings["clock"] == "reference"
    assert all(seconds > 0 for seconds in rows["constant-reference", "1.2 s"].values)
    assert rows["constant-section", "0.6 s"].settings["window"] == 2
    assert rows["constant-section", "0.6 s"].precision == "fp32"


def test_command_may_count_only(monkeypatch: pytest.MonkeyPatch, counted: list[SectionCounts]) -> None:
    result = run("--counters", "--window", 2, "--steps", 1, "--device", "cpu")
    assert (result.exit_code, result.stdout[:20]) == (0, "counters       holds")
    changed = [dataclasses.replace(section, tokens=index) for index, section in enumerate(counted)]
    monkeypatch.setattr("isoframe.bench.constant.claims.count_job", lambda render, request: changed)
    result = run("--counters", "--device", "cpu")
    assert (result.exit_code, "FAILS: tokens 5 in section 6, 6 in section 7" in result.stdout) == (1, True)


def test_a_model_of_random_weights_needs_no_files_and_keeps_the_promise() -> None:
    result = run("--weights", "random", "--counters", "--size", "32x32", "--window", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    # 2 x 2 cells of 4 latent frames, the history in 1 + 4 more.
    assert "holds: sections 6 to 8 are equal: 21 tokens" in result.stdout
    assert "13 frames decoded, 8 encoded" in result.stdout
    assert run("--weights", "heavy").exit_code == 2


@pytest.mark.parametrize("lengths", ["", "1,x", "0", "4000", "1;2"])
def test_lengths_that_are_none_are_refused_before_a_model_is_loaded(lengths: str) -> None:
    result = run("--lengths", lengths, "--model", "nowhere")
    assert result.exit_code == 2
    assert "--lengths must be seconds from 0 to 3600 with commas" in result.stderr


@pytest.mark.parametrize("clock", ["cpu", "reference"])
def test_own_time_and_reference_work_are_offered_on_the_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    monkeypatch.setattr(Engine, "device", torch.device("cuda"))
    result = run("--clock", clock, "--device", "cpu")
    assert (result.exit_code, "use --clock wall" in result.stderr) == (2, True)
    assert run("--clock", "sun").exit_code == 2


def test_lengths_are_numbers_with_commas() -> None:
    assert constant_command.parse_lengths("1,2.5,60") == (1.0, 2.5, 60.0)
