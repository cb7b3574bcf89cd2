"""Variants of one model's denoising, measured one after the other."""

import statistics
from dataclasses import replace

import torch

from ...engine.engine import Engine
from ...engine.families.framepack.step_sizes import DenoiseShape, packed_sequence
from ...engine.generation.model_lookup import find_model
from ...engine.model.precision import find_precision
from ...engine.planning.machine import Card, card_of_device
from ...engine.request.config import EngineConfig, SamplingConfig
from ...engine.request.sections import largest_schedule
from ..meters.accuracy import relative_rms
from ..meters.memory_meter import MemoryMeter
from ..operations.correctness import check_operations
from ..records.rows import BenchRow, Gate, Setting, in_words
from ..subjects.random_model import NUM_TEXT_TOKENS, RandomModel, model_conditioning
from .pace_rows import pace_rows
from .slow_reasons import BusyCard, likely_reasons
from .step_check import check_step
from .step_pace import (
    LatentSampler,
    StepPace,
    StepResult,
    Variant,
    expected_step,
    measure_pace,
    roofline_share,
)


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
        self._known = find_model(source)
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
        return f"{self._source}, {kind}, {in_words(self._size)}, {self._num_steps} steps, {self._device}"

    def check(self, variant: Variant) -> Gate:
        """Whether a step is right in the precision and with the attention of ``variant``."""
        return check_step(self._device, precision=variant.precision, attention=variant.attention)

    def run(self, variant: Variant, gate: Gate) -> StepResult:
        """Measure a variant; the first one is what the others are compared with.

        Args:
            variant: what to run.
            gate: what :meth:`check` said of it.
        """
        shape, busy = self._shape(variant), BusyCard(self._device, self._num_sections, self._num_steps)
        with busy.watching():
            pace = measure_pace(
                self._sampler(variant),
                model_conditioning(self._known, self._size),
                self._sampling(variant.step_cache),
                shape,
                meter=MemoryMeter(self._device),
                on_event=busy.on_event,
            )
        expected = self.results[0].pace.latents if self.results else pace.latents
        card = self._card()
        share = None if card is None else _share(shape, card, pace)
        result = StepResult(
            variant=variant,
            pace=pace,
            gate=gate,
            attention=busy.attention,
            error=relative_rms(pace.latents, expected),
            share=share,
            roofline=None if card is None else roofline_share(shape, card, pace.flops),
            reasons=() if share is None else tuple(likely_reasons(busy.observe(share, pace))),
        )
        self.results.append(result)
        return result

    @property
    def settings(self) -> dict[str, Setting]:
        """The settings that all rows share; those that a variant chooses come with its rows."""
        return {
            "weights": "random" if self._is_random else "model",
            "size": in_words(self._size),
            "steps": self._num_steps,
            "device": str(self._device),
            "vram": None if self._config.vram is None else str(self._config.vram),
            "ram": None if self._config.ram is None else str(self._config.ram),
        }

    def rows(self) -> list[BenchRow]:
        """Rows of all results."""
        return [
            row
            for result in self.results
            for row in pace_rows(result, self._source, self.gate, self.settings)
        ]

    def _sampler(self, variant: Variant) -> LatentSampler:
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
        attention = variant.attention
        # In an int8 job "auto" takes what is fastest, which is int8 where the card should do its best.
        is_int8 = attention.startswith("int8") or (attention == "auto" and variant.precision == "int8")
        return DenoiseShape(
            config=shapes.transformer,
            precision=find_precision(variant.precision, compute),
            sequence=packed_sequence(
                shapes.transformer,
                self._size,
                largest_schedule(sampling),
                shapes.num_image_tokens,
                NUM_TEXT_TOKENS,
            ),
            num_steps=self._num_steps,
            attention="int8" if is_int8 else "float",
        )

    def _card(self) -> Card | None:
        """The card in the table; None for another and on the CPU."""
        if self._device.type != "cuda":
            return None
        card = card_of_device(torch.cuda.get_device_name(self._device))
        return None if card.is_estimate else card


def _share(shape: DenoiseShape, card: Card, pace: StepPace) -> float:
    """Part of what the card should do with the copies that were made."""
    copied = statistics.median(pace.copied) / max(pace.computed_share, 1e-9)
    return expected_step(shape, card, copied_bytes=copied) * pace.computed_share / pace.step
