"""A budget for a model of random weights, without a file: two units in RAM stand for all of them."""

from functools import partial

import torch
from torch import Tensor

from ...engine.checkpoints.checkpoint import Checkpoint
from ...engine.checkpoints.tensor_files import TensorEntry
from ...engine.families.family import ModelSizes
from ...engine.families.registry import family_of
from ...engine.families.transformer_base import Transformer
from ...engine.model.units import UnitLayout
from ...engine.planning.machine import Machine
from ...engine.planning.plan import Plan
from ...engine.request.config import EngineConfig
from ...engine.weights.device_copies import make_copies
from ...engine.weights.host_tiers import HostBuffer, PinnedWeights
from ...engine.weights.memory import ModelMemory, UnplacedUnits
from ...engine.weights.unit_streamer import Streamer
from ...quant import WeightFormat
from .random_model import draw_weight


class RandomMemory(ModelMemory):
    """Places units as a :class:`ModelMemory` does; each kind of unit is drawn once, and locked in RAM on CUDA.

    A copy takes as long as one from a store of its own; only the values of equal units are equal.
    """

    def __init__(
        self,
        shapes: ModelSizes,
        config: EngineConfig,
        weight_format: WeightFormat,
        device: torch.device,
        machine: Machine,
    ) -> None:
        """Draw the units.

        Args:
            shapes: of the model.
            config: what a plan depends on.
            weight_format: of the units.
            device: where they compute.
            machine: the budget on the device; RAM does not matter.
        """
        self._drawn = _draw_units(shapes, weight_format, is_locked=device.type == "cuda")
        super().__init__(_no_files(shapes), shapes, config, weight_format, device, machine)
        self._is_stored = True

    def _load(self) -> Transformer:
        shapes, dtype = self._shapes, self._format.dtype
        transformer = self._family.transformer_class()(
            shapes.transformer,
            dtype,
            self._device,
            weight_format=self._format,
            has_fp32_head=dtype == torch.bfloat16,
            units=UnplacedUnits(),
            read_job_weight=partial(_draw_job_weight, dtype, self._device),
        )
        for name, destination in transformer.outer_destinations.items():
            destination.write(draw_weight(name, destination.shape, self._device))
        return transformer

    def _place_stored(self, plan: Plan) -> None:
        copies = make_copies(
            PinnedWeights(self._drawn.blobs),
            self._device,
            unit_bytes=max(layout.num_bytes for layout in self._layouts),
            is_timed=self.log is not None,
        )
        self.units = Streamer(
            self._layouts, copies, ring=plan.ring or 2, residents=plan.residents, log=self.log
        )


def _draw_job_weight(dtype: torch.dtype, device: torch.device, name: str, shape: tuple[int, ...]) -> Tensor:
    """Drawn on the device when it computes, and dropped; a matrix as it is used: twice that memory is not in the plan."""
    if len(shape) == 1:
        return draw_weight(name, shape, device)
    dtype = torch.float32 if dtype == torch.float16 else dtype
    return torch.randn(shape, dtype=dtype, device=device).mul_(shape[1] ** -0.5)


def _draw_units(shapes: ModelSizes, weight_format: WeightFormat, *, is_locked: bool) -> PinnedWeights:
    """The first unit of each layout, given for all that have it."""
    layouts = [UnitLayout(spec, weight_format) for spec in family_of(shapes.transformer).unit_specs()]
    drawn: dict[str, Tensor] = {}
    slabs: list[HostBuffer] = []
    for layout in layouts:
        kind = str(layout.describe())
        if kind not in drawn:
            slabs.append(HostBuffer(layout.num_bytes, is_locked=is_locked))
            drawn[kind] = slabs[-1].tensor
            for name, destination in layout.destinations(drawn[kind]).items():
                destination.write(draw_weight(name, destination.shape, torch.device("cpu")))
    return PinnedWeights([drawn[str(layout.describe())] for layout in layouts], slabs)


def _no_files(shapes: ModelSizes) -> Checkpoint:
    entries: dict[str, TensorEntry] = {}
    return Checkpoint(
        config=shapes.transformer, name=shapes.name, source_hash="random", entries=entries, scales={}
    )
