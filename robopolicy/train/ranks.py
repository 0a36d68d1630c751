"""The processes that train one module together, as torchrun launches them: who this one is, and means over all.

Gradients are averaged by one all_reduce of a flat vector. DistributedDataParallel would do the same behind a forward();
a Trainable has a loss for each phase instead, which trains other parameters, and networks of this size gain nothing from
overlapping the exchange with the backward pass.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robopolicy.train.plan import TrainingError, torch_device


@dataclass(frozen=True)
class Ranks:
    """Process number `rank` of `count`, on `device`. Alone, every method returns what it was given."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace every gradient by its mean over the processes; the mean loss. A gradient that none has stays None."""
        if self.count == 1:
            return loss
        present = loss.new_tensor([float(p.grad is not None) for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), present, loss.view(1)])
        self._all(distributed.all_reduce, flat)
        *means, present, loss = flat.split([*(p.numel() for p in parameters), len(parameters), 1])
        for parameter, mean, holders in zip(parameters, means, present.tolist(), strict=True):
            if holders:
                parameter.grad = (mean / self.count).view_as(parameter)
        return loss[0] / self.count

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers (those in the state dict; others are constants)."""
        if self.count == 1:
            return
        stored = module.state_dict(keep_vars=True).values()
        buffers = [value for value in stored if not isinstance(value, nn.Parameter)]
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            group = [buffer for buffer in buffers if buffer.dtype == dtype]
            flat = torch.cat([buffer.flatten() for buffer in group])
            self._all(distributed.broadcast, flat)
            for buffer, part in zip(group, flat.split([buffer.numel() for buffer in group]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def means(self, row: Mapping[str, float]) -> dict[str, float]:
        """Mean of every entry over the processes that give it, in the order in which the first process that does gives them."""
        if self.count == 1:
            return dict(row)
        found: list[Any] = [None] * self.count
        with self._together():
            distributed.all_gather_object(found, dict(row))
        names = dict.fromkeys(name for each in found for name in each)
        return {name: fmean(each[name] for each in found if name in each) for name in names}

    def agree(self, text: str) -> str:
        """The text that the first process gives. All wait for it."""
        if self.count == 1:
            return text
        data = torch.zeros(4096, dtype=torch.uint8, device=self.device)
        if self.first:
            encoded = text.encode()
            data[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        self._all(distributed.broadcast, data)
        return bytes(data.tolist()).rstrip(b"\0").decode()

    def wait(self) -> None:
        """Return once all processes have come here."""
        self.agree("here")

    def _all(self, collective: Callable[..., object], tensor: Tensor) -> None:
        with self._together():
            collective(tensor, **({"src": 0} if collective is distributed.broadcast else {}))

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            text = f"process {self.rank} of {self.count} lost another one, whose own message says why"
            raise TrainingError(f"{text} ({str(error).splitlines()[0]})") from error


def launched() -> tuple[int, int]:
    """This process's number and their count as torchrun tells them; (0, 1) without it."""
    if not distributed.is_torchelastic_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join(device: str) -> Ranks:
    """Meet the other processes, on gloo for the CPU and NCCL for GPUs, of which each process takes its own.

    Raises:
        TrainingError: a device that is not there, or one GPU for several processes.
    """
    rank, count = launched()
    if count == 1:
        return Ranks(torch_device(device))
    if ":" in device:
        raise TrainingError(f"train.device={device!r} is one GPU for {count} processes: give train.device=cuda")
    cuda = device == "cuda"
    own = torch_device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else device)
    if rank:
        logging.getLogger("robopolicy").setLevel(logging.WARNING)
    if not distributed.is_initialized():
        if cuda:
            torch.cuda.set_device(own)
        distributed.init_process_group("nccl" if cuda else "gloo")
        atexit.register(distributed.destroy_process_group)
    return Ranks(own, rank, count)
