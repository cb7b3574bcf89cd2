"""Finished sections of a job that was stopped, from which sampling goes on."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .history import History
from .sections import NUM_HISTORY


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledSections:
    """What the next section depends on.

    Attributes:
        num_sections: finished sections of the job.
        latents: the last of them in generation order, [1, C, window, Y, X] fp32 each: all, or 19 frames or more.
        generator_state: of the job's noise after the last of them, uint8; None where none is finished.
        known: sections that later ones see, each by its place in generation order, where the history is no straight line or
            a packing schedule says what is seen; ``latents`` is empty then. May be read from a disk one by one.
        next_seed: the next section is drawn from this seed instead; those after it continue the job's own sequence.
    """

    num_sections: int = 0
    latents: tuple[Tensor, ...] = ()
    generator_state: Tensor | None = None
    known: Iterable[tuple[int, Tensor]] = ()
    next_seed: int | None = None

    def history(self, start_latent: Tensor, order: str, beyond: Tensor | None = None) -> History:
        """The history of the next section; latents ``beyond`` all of them were there before the first."""
        history = History(start_latent, order)
        if beyond is not None:
            history.append(beyond)
        for latents in self.latents:
            history.append(latents)
        return history


def num_history_sections(window: int) -> int:
    """Sections of ``window`` latent frames that the next one attends to."""
    return -(-NUM_HISTORY // window)


class JobNoise:
    """One stream of noise for the whole job: a section's noise depends on how many came before it."""

    def __init__(self, seed: int, shape: tuple[int, ...], resume: SampledSections) -> None:
        """Noise of ``shape``, from the start of ``seed``'s sequence or from where ``resume`` left it."""
        self._shape = shape
        self._next_seed = resume.next_seed
        self._generator = torch.Generator("cpu").manual_seed(seed)
        if resume.generator_state is not None:
            self._generator.set_state(resume.generator_state)

    def draw(self) -> Tensor:
        """Noise of the next section, fp32 on the CPU."""
        # Another engine of the process may be loading a model, which changes the default dtype.
        noise = torch.randn(self._shape, generator=self._generator, dtype=torch.float32)
        if self._next_seed is not None:
            # A section that is made again takes its place in the sequence, so that those after it keep theirs.
            own = torch.Generator("cpu").manual_seed(self._next_seed)
            noise = torch.randn(self._shape, generator=own, dtype=torch.float32)
            self._next_seed = None
        return noise

    def state(self) -> Tensor:
        """Where the sequence stands, uint8."""
        return self._generator.get_state()
