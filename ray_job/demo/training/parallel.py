"""One training step's work in several processes of a machine, one core each.

Every process holds the whole trainer and takes its share of a step's examples. The sums made here turn their parts
into the step that a single process makes of all examples, up to the order of additions.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes work together, and which this one is. Its sums are made by all of them at once."""

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what all have to do."""
        return items[self.rank :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors of one shape."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def map(self, function: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """`function` of every tensor, computed once; `function` keeps shapes and all processes give equal tensors."""
        own = self.share(range(len(tensors)))
        results = [function(t) if number in own else torch.zeros_like(t) for number, t in enumerate(tensors)]
        return self._sum_each(results)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces gradients by their sums; None stays where no process has one."""
        if self.count == 1:
            return
        has_grad_P = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has_grad_P, *sums = self._sum_each([has_grad_P, *grads])
        for parameter, has_grad, total in zip(parameters, has_grad_P.tolist(), sums, strict=True):
            parameter.grad = total if has_grad else None

    def _sum_each(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self.count == 1 or not tensors:
            return list(tensors)
        flat = self.sum(torch.cat([tensor.flatten() for tensor in tensors]))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


ALONE = Processes()


def run_in_processes(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(Processes(…), *arguments)` in `count` new processes, or in this one if `count` is 1.

    Raises what `work` raised, in any of them; the others are ended.
    """
    if count == 1:
        work(ALONE, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_join, (count, folder, work, arguments), nprocs=count)  # type: ignore[no-untyped-call]


def _join(rank: int, count: int, folder: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what `spawn` sends if its process dies; ignored below nohup
    torch.set_num_threads(1)
    meeting = f"file://{Path(folder, 'rendezvous')}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        work(Processes(rank, count), *arguments)
    finally:
        distributed.destroy_process_group()
