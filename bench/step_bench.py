"""Variants of one model's denoising, measured one after the other."""

from dataclasses import dataclass, replace

import torch

from ..engine.cards import card_of_device
from ..engine.config import EngineConfig, SamplingConfig
from ..engine.engine import Engine
from ..engine.events import Event, StepEvent
from ..engine.footprint import DenoiseShape, find_precision, packed_sequence
from ..engine.known_shapes import find_shapes
from ..engine.nvml import CardState, read_card
from .accuracy import relative_rms
from .correctness import check_operations
from .environment import read_environment
from .memory_meter import MemoryMeter
from .random_model import RandomModel, draw_conditioning
from .rows import BenchRow, Gate, Setting, now, this_command
from .step_pace import Pace, Sampler, expected_step, likely_reasons, measure_pace

# Tokens of a short prompt.
_NUM_TEXT_TOKENS = 32
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is varied; names as in ``EngineConfig`` and ``SamplingConfig``."""

    precision: str
    attention: str
    step_cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One variant, measured.

    Attributes:
        variant: what ran.
        pace: how fast.
        error: relative RMS of its latents to those of the first variant; 0 for that one.
        share: of what the card should do; None for a card that is not in the table, and on the CPU.
        reasons: why, where the share is low.
    """

    variant: Variant
    pace: Pace
    error: float
    share: float | None
    reasons: tuple[str, ...]


class StepBench:
    """Measures variants of one model at one size.

    Attributes:
        gate: the check of the model's operations on the device.
        results: in the order of measuring.
    """

    def __init__(
        self,
        *,
        source: str,
        is_random: bool,
        size: tuple[int, int] | None,
        num_steps: int,
        num_sections: int,
        config: EngineConfig,
    ) -> None:
        """Find the shapes and check the operations.

        Args:
            source: "demo", "framepack-13b", a Hub id or a folder.
            is_random: draw weights of that shape instead of reading them.
            size: (height, width) in pixels; None is the model's first bucket.
            num_steps: steps of a section.
            num_sections: sections, at least 2; the first one is not counted.
            config: device and budgets; variants replace the rest.
        """
        self._source = source
        self._is_random = is_random
        self._known = find_shapes(source)
        self._size = size or self._known.buckets[0]
        self._num_steps = num_steps
        self._num_sections = num_sections
        self._config = config
        self._device = torch.device(config.device)
        self.gate: Gate = check_operations(self._device)
        self.results: list[StepResult] = []

    def describe(self) -> str:
        """What is measured, in a line."""
        kind = "random weights" if self._is_random else "its own weights"
        return f"{self._source}, {kind}, {self._size[0]}x{self._size[1]}, {self._num_steps} steps, {self._device}"

    def run(self, variant: Variant) -> StepResult:
        """Measure a variant; the first one is what the others are compared with."""
        shape, busy = self._shape(variant), _BusyCard(self._device, self._num_sections, self._num_steps)
        config = self._known.shapes.transformer
        pace = measure_pace(
            self._sampler(variant),
            draw_conditioning(
                config,
                size=self._size,
                num_text_tokens=_NUM_TEXT_TOKENS,
                num_image_tokens=self._known.shapes.image_encoder.num_tokens,
            ),
            self._sampling(variant.step_cache),
            shape,
            meter=MemoryMeter(self._device),
            on_event=busy.on_event,
        )
        expected = self.results[0].pace.latents if self.results else pace.latents
        share = self._share(shape, pace)
        result = StepResult(
            variant=variant,
            pace=pace,
            error=relative_rms(pace.latents, expected),
            share=share,
            reasons=() if share is None else tuple(likely_reasons(share, busy.state, variant.attention)),
        )
        self.results.append(result)
        return result

    def rows(self) -> list[BenchRow]:
        """Rows of all results."""
        return [row for result in self.results for row in self._rows(result)]

    def _sampler(self, variant: Variant) -> Sampler:
        config = replace(self._config, precision=variant.precision, attention=variant.attention)
        if self._is_random:
            return RandomModel(self._known.shapes.transformer, config, self._device)
        return Engine.load(self._source, config=config)

    def _sampling(self, step_cache: str) -> SamplingConfig:
        return SamplingConfig(
            num_sections=self._num_sections,
            num_steps=self._num_steps,
            order=self._known.order,
            step_cache=step_cache,
        )

    def _shape(self, variant: Variant) -> DenoiseShape:
        shapes, sampling = self._known.shapes, self._sampling("none")
        compute = "fp32" if self._device.type == "cpu" else "bf16"
        # In an int8 job "auto" takes what is fastest, which is int8 where the card should do its best.
        is_int8 = variant.attention.startswith("int8") or (variant.attention, variant.precision) == (
            "auto",
            "int8",
        )
        return DenoiseShape(
            config=shapes.transformer,
            precision=find_precision(variant.precision, compute),
            sequence=packed_sequence(
                shapes.transformer,
                self._size,
                sampling.latent_window_size,
                shapes.image_encoder.num_tokens,
                _NUM_TEXT_TOKENS,
            ),
            num_steps=self._num_steps,
            attention="int8" if is_int8 else "float",
        )

    def _share(self, shape: DenoiseShape, pace: Pace) -> float | None:
        if self._device.type != "cuda":
            return None
        card = card_of_device(torch.cuda.get_device_name(self._device))
        if card.is_estimate:
            return None
        return expected_step(shape, card) * pace.computed_share / pace.step

    def _rows(self, result: StepResult) -> list[BenchRow]:
        pace, variant = result.pace, result.variant
        quantities: dict[str, tuple[str, tuple[float, ...]]] = {
            "step": ("s/it", pace.steps),
            "section": ("s/section", pace.sections),
            "frame": ("s/frame", tuple(seconds / pace.num_frames for seconds in pace.sections)),
            "flops": ("TFLOP/s", (pace.flops / 1e12,)),
            "computed": ("ratio", (pace.computed_share,)),
            "host-peak": ("B", (float(pace.peak_rss),)),
            "error": ("ratio", (result.error,)),
        }
        if pace.peak_allocated is not None:
            quantities["device-peak"] = ("B", (float(pace.peak_allocated),))
        if result.share is not None:
            quantities["share-of-card"] = ("ratio", (result.share,))
        settings: dict[str, Setting] = {
            "weights": "random" if self._is_random else "model",
            "size": "x".join(map(str, self._size)),
            "steps": self._num_steps,
            "step_cache": variant.step_cache,
            "attention": variant.attention,
            "device": str(self._device),
            "vram": None if self._config.vram is None else str(self._config.vram),
            "ram": None if self._config.ram is None else str(self._config.ram),
        }
        compute = "fp32" if self._device.type == "cpu" else "bf16"
        gate = Gate(
            is_green=self.gate.is_green,
            text=f"{self.gate.text}; relative RMS of the latents to the first variant {result.error:.2e}",
        )
        return [
            BenchRow(
                case=f"pace-{name}",
                variant=self._source,
                shape=(),
                dtype=_DTYPES.get(variant.precision, _DTYPES[compute]),
                precision=variant.precision,
                unit=unit,
                values=values,
                gate=gate,
                settings=settings,
                environment=read_environment(),
                command=this_command(),
                date=now(),
            )
            for name, (unit, values) in quantities.items()
        ]


class _BusyCard:
    """Looks at the card once, in the middle of the last section: a card at rest tells nothing.

    Attributes:
        state: what was seen; None before, on the CPU, and where the driver does not answer.
    """

    def __init__(self, device: torch.device, num_sections: int, num_steps: int) -> None:
        self.state: CardState | None = None
        self._device = device
        self._moment = (num_sections - 1, num_steps // 2)

    def on_event(self, event: Event) -> None:
        is_now = isinstance(event, StepEvent) and (event.section, event.step) == self._moment
        if is_now and self._device.type == "cuda":
            self.state = read_card(self._device)
