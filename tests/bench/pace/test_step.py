"""``isoframe bench step``: units, the share of the card, reasons, and silence behind a red gate."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.meters.memory_meter import MemoryReading
from isoframe.bench.pace import step_bench
from isoframe.bench.pace.slow_reasons import Observation, likely_reasons
from isoframe.bench.pace.step_check import MAX_ERRORS, check_step
from isoframe.bench.pace.step_pace import expected_step, measure_pace, roofline_share
from isoframe.bench.records.rows import Gate, read_rows
from isoframe.bench.subjects.random_model import RandomModel, draw_conditioning, draw_weight
from isoframe.engine import ConfigError, EngineConfig, LatentSection, SamplingConfig
from isoframe.engine.events import EventHandler, PhaseEvent, StepEvent
from isoframe.engine.families.framepack.step_sizes import DenoiseShape, packed_sequence
from isoframe.engine.generation.model_lookup import find_model
from isoframe.engine.model.conditioning import Conditioning
from isoframe.engine.model.precision import find_precision
from isoframe.engine.planning.machine import find_card
from isoframe.engine.planning.nvml import CardState
from isoframe.engine.request.schedule import published_schedule
from isoframe.kernels import modulated_layer_norm
from isoframe.quant import dense

CPU = torch.device("cpu")
DEMO = find_model("demo").shapes
MODEL_13B = find_model("framepack-13b").shapes
SAMPLING = SamplingConfig(num_sections=3, num_steps=4, order="forward")
BUSY = CardState(
    driver="580", cuda=13000, used_bytes=1, pcie_generation=4, max_pcie_generation=4, pcie_width=16, max_pcie_width=16,
    power_limit=300_000, power=290_000, clock=1800, max_clock=1980, throttles=(),
)  # fmt: skip


def make_shape(precision: str = "bf16") -> DenoiseShape:
    """The published model at 640x608 with a short prompt: 18261 tokens."""
    config = MODEL_13B.transformer
    return DenoiseShape(
        config=config,
        precision=find_precision(precision),
        sequence=packed_sequence(config, (640, 608), published_schedule("inverted", 9), 729, 32),
        num_steps=25,
    )


def conditioning() -> Conditioning:
    return draw_conditioning(DEMO.transformer, size=(64, 64), num_text_tokens=3, num_image_tokens=16)


class Fake:
    """A model and a machine that take 1 s to pack and 2 s for each step that is computed, the first section 10 s more."""

    def __init__(self, skipped: tuple[int, ...] = ()) -> None:
        self.now = 0.0
        self.skipped = skipped

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        pass

    def read(self) -> MemoryReading:
        return MemoryReading(rss=1, peak_rss=7)

    def sample(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Iterator[LatentSection]:
        assert on_event is not None
        for index in range(sampling.num_sections):
            on_event(PhaseEvent(phase="pack"))
            self.now += 1 + 10 * (index == 0)
            on_event(PhaseEvent(phase="denoise"))
            for step in range(sampling.num_steps):
                is_computed = step not in self.skipped
                self.now += 2 * is_computed
                on_event(
                    StepEvent(
                        section=index, num_sections=3, step=step, num_steps=4, is_computed=is_computed,
                        first_latent_frame=1, x0=torch.zeros(1),
                    )
                )  # fmt: skip
            yield LatentSection(
                index=index, first_latent_frame=1, latents=torch.ones(1, 1, 9, 2, 2),
                generator_state=torch.zeros(1, dtype=torch.uint8),
            )  # fmt: skip


def pace_of(fake: Fake) -> Any:
    return measure_pace(fake, conditioning(), SAMPLING, make_shape(), meter=fake, clock=fake.clock)


def test_every_unit_follows_from_the_sections_after_the_first() -> None:
    pace = pace_of(Fake())
    assert pace.sections == (9.0, 9.0)
    assert (pace.step, pace.section, pace.frame) == (2.0, 9.0, 0.25)
    assert pace.computed_share == 1
    assert pace.peak_rss == 7
    assert pace.latents.shape == (1, 1, 27, 2, 2)
    # Products and attention of 60 blocks on 18261 tokens.
    assert pace.step_flops == pytest.approx(2 * 60 * 12 * 3072**2 * 18261 + 4 * 60 * 18261**2 * 3072)
    assert pace.flops == pytest.approx(pace.step_flops / 2)


def test_skipped_steps_count_as_steps_and_not_as_operations() -> None:
    pace = pace_of(Fake(skipped=(1, 3)))
    assert (pace.step, pace.section, pace.computed_share) == (1.0, 5.0, 0.5)
    # The hardware works at the same rate.
    assert pace.flops == pytest.approx(pace.step_flops / 2)


def test_a_card_is_expected_to_be_slower_in_bf16_than_in_int8() -> None:
    card = find_card("RTX 4090")
    in_int8 = dataclasses.replace(make_shape("int8"), attention="int8")
    assert expected_step(in_int8, card) < 0.6 * expected_step(make_shape(), card)


def test_copies_that_take_longer_than_the_arithmetic_are_expected_to_be_the_pace() -> None:
    card = find_card("RTX 4090")
    copied = 10 * 1e9 * card.h2d
    assert expected_step(make_shape(), card, copied_bytes=copied) == pytest.approx(10)
    assert expected_step(make_shape(), card, copied_bytes=1.0) == expected_step(make_shape(), card)


def test_the_roofline_is_the_best_rate_in_the_format_of_the_products() -> None:
    card = find_card("RTX 4090")
    assert roofline_share(make_shape(), card, 1e12 * card.bf16 / 2) == pytest.approx(0.5)
    assert roofline_share(make_shape("int8"), card, 1e12 * card.int8 / 4) == pytest.approx(0.25)
    assert card.fp8 is not None
    assert roofline_share(make_shape("fp8"), card, 1e12 * card.fp8) == pytest.approx(1)


def seen(share: float = 0.4, **changes: Any) -> Observation:
    values: dict[str, Any] = {
        "share": share, "state": BUSY, "total_bytes": 100, "attention": "flash-attn", "wait_share": 0.0,
        "platform": "linux",
    }  # fmt: skip
    return Observation(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"throttles": ("temperature",)}, "the card is slowed down by its temperature"),
        ({"clock": 900}, "its clock is 900 of 1980 MHz"),
        ({"pcie_width": 4}, "PCIe runs with 4 of 16 lanes"),
        ({"pcie_generation": 1}, "PCIe runs at generation 1 of 4"),
        ({"power": 49_000}, "it draws 49 of 300 W: it waits for the host, copies or the disk"),
        ({}, "nothing conspicuous in power, clocks and PCIe link"),
    ],
)
def test_a_low_share_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    state = dataclasses.replace(BUSY, **changes)
    assert likely_reasons(seen(state=state)) == [reason]
    assert likely_reasons(seen(0.8, state=state)) == []


def test_waiting_for_copies_and_a_full_card_under_windows_are_reasons() -> None:
    (waiting,) = likely_reasons(seen(wait_share=0.3))
    assert waiting.startswith("30% of a step waits for copies of weights")
    full = dataclasses.replace(BUSY, used_bytes=99)
    (spilled,) = likely_reasons(seen(state=full, platform="win32"))
    assert spilled.startswith("the card is full, and Windows moves what does not fit into RAM")
    assert likely_reasons(seen(state=full)) == ["nothing conspicuous in power, clocks and PCIe link"]


def test_an_unfused_attention_and_a_silent_driver_are_told() -> None:
    reasons = likely_reasons(seen(state=None, attention="sdpa"))
    assert [reason.split(":")[0] for reason in reasons] == [
        "attention is torch's", "pip install nvidia-ml-py shows power, clocks and PCIe link"
    ]  # fmt: skip


@pytest.mark.parametrize("precision", MAX_ERRORS)
def test_a_step_of_every_format_is_near_the_reference(precision: str) -> None:
    gate = check_step(CPU, precision=precision)
    assert gate.is_green, gate.text
    assert f"in {precision} with attention sdpa: relative RMS to diffusers" in gate.text


def too_large(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    result: Tensor = modulated_layer_norm(x, scale, shift)
    return result.mul_(1.001)


def crash(*_: Any) -> None:
    raise RuntimeError("out of resources\nand more")


@pytest.mark.parametrize(("kernel", "text"), [(too_large, "> 1e-04"), (crash, "failed: out of resources")])
def test_a_wrong_kernel_turns_the_gate_of_a_step_red(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, text: str
) -> None:
    monkeypatch.setattr(dense, "modulated_layer_norm", kernel)
    gate = check_step(CPU, precision="fp32")
    assert not gate.is_green
    assert gate.text.endswith(text)


def test_random_weights_and_inputs_are_the_same_every_time() -> None:
    assert torch.equal(draw_weight("a", (3, 4), CPU), draw_weight("a", (3, 4), CPU))
    assert not torch.equal(draw_weight("a", (3, 4), CPU), draw_weight("b", (3, 4), CPU))
    assert torch.equal(conditioning().start_latent, conditioning().start_latent)


def test_a_random_model_samples_finite_latents_and_no_step_cache() -> None:
    model = RandomModel(DEMO.transformer, EngineConfig(device="cpu"), CPU)
    sampling = dataclasses.replace(SAMPLING, num_sections=1, num_steps=2)
    (section,) = model.sample(conditioning(), sampling)
    assert section.latents.isfinite().all()
    assert section.latents.std() > 0.1
    with pytest.raises(
        ConfigError, match="skips steps by what a model computes, and these weights are random"
    ):
        model.sample(conditioning(), dataclasses.replace(sampling, step_cache="teacache"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["step", *map(str, arguments), "--device", "cpu"])


def test_command_compares_variants_and_stores_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    precisions = ["--precision", "fp32", "--precision", "int8"]
    result = run(*precisions, "--steps", 2, "--sections", 2, "--json", path)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()[2:]]
    assert [line[:3] for line in lines] == [["fp32", "sdpa", "none"], ["int8", "sdpa", "none"]]
    assert lines[0][-1] == "0.0e+00"
    assert 0 < float(lines[1][-1]) < 0.5
    rows = {(row.case, row.precision): row for row in read_rows(path)}
    step, section, frame = (rows[f"pace-{name}", "fp32"] for name in ("step", "section", "frame"))
    assert (step.unit, section.unit, frame.unit) == ("s/it", "s/section", "s/frame")
    assert section.median == pytest.approx(36 * frame.median)
    assert 2 * step.median < section.median
    assert rows["pace-error", "int8"].median > 0
    assert step.settings["weights"] == "model"
    assert (step.settings["attention"], step.settings["attention_used"]) == ("auto", "sdpa")
    # All units of the demo stay in memory: nothing is copied, nothing is waited for.
    assert (rows["pace-copied", "fp32"].values, rows["pace-wait", "fp32"].values) == ((0.0,), (0.0,))
    assert "a step of a small model in int8" in rows["pace-step", "int8"].gate.text


def test_a_wrong_variant_is_named_and_has_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MAX_ERRORS, "int8", 1e-9)
    path, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    precisions = ["--precision", "fp32", "--precision", "int8"]
    result = run(*precisions, "--steps", 2, "--sections", 2, "--json", path, "--report", page)
    assert result.exit_code == 1
    assert "int8        auto          none       WRONG: a step of a small model in int8" in result.stdout
    assert {row.precision for row in read_rows(path)} == {"fp32"}
    text = page.read_text(encoding="utf-8")
    assert "Share of the roofline" in text
    assert "int8" not in text.partition("<h2>")[2].partition("Measured with")[0]


def test_no_figures_are_printed_behind_a_red_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    red = Gate(is_green=False, text="gated_residual: relative RMS error 1.0")
    monkeypatch.setattr(step_bench, "check_operations", lambda device: red)
    result = run("--json", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert "gated_residual: relative RMS error 1.0" in result.stdout
    assert "s/it" not in result.stdout
    assert not (tmp_path / "rows.jsonl").exists()
