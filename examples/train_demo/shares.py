"""One optimizer step computed in shares, each on its own thread."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Share = Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]


class ShareWorkers:
    """Threads that compute the gradients of one step.

    Single-threaded shares use the cores better than threads inside small operators do, above all on a busy machine,
    where every such operator would wait for its slowest thread. The result depends on the number of shares, not
    on the number of threads. Run with OMP_NUM_THREADS=1.
    """

    def __init__(self, num_shares: int) -> None:
        self._num_shares = num_shares
        self._executor = ThreadPoolExecutor(num_shares)

    def gradients(self, parameters: Sequence[Tensor], compute: Share) -> dict[str, float]:
        """Set every ``grad`` to the mean over the shares; returns the mean losses.

        Args:
            parameters: what to differentiate by.
            compute: from the number of a share to its loss and the parts of the loss to report.
        """

        def run(share: int) -> tuple[tuple[Tensor | None, ...], dict[str, float]]:
            # PyTorch counts threads per calling thread.
            torch.set_num_threads(1)
            loss, losses = compute(share)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            return gradients, {name: value.item() for name, value in losses.items()}

        results = list(self._executor.map(run, range(self._num_shares)))
        for parameter, *gradients in zip(parameters, *(result[0] for result in results), strict=True):
            present = [gradient for gradient in gradients if gradient is not None]
            parameter.grad = torch.stack(present).sum(0) / self._num_shares if present else None
        reported = [result[1] for result in results]
        names = dict.fromkeys(name for losses in reported for name in losses)
        return {name: _mean([losses[name] for losses in reported if name in losses]) for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
