"""Several processes that train one model: which sequences are whose, and adding up gradients.

Every process draws the whole batch (indices and masks, which cost nothing) and computes its share
of the sequences of every session. Losses are divided by the number of terms in the whole batch and
gradients are summed, so that the result is that of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from neds.batches import mixed_seed
from neds_rt.errors import BadInput

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """A process's sequences: among each session's, and as rows of the whole batch."""

    of_session: slice
    of_batch: Tensor


class Processes:
    """One process alone, or this one among those that torchrun started."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @classmethod
    def joined(cls, device: str = "cpu") -> Processes:
        """Join the group that torchrun's environment names; alone where there is none."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if not torch.distributed.is_initialized():
            cuda = device.startswith("cuda")
            torch.distributed.init_process_group("nccl" if cuda else "gloo")
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @staticmethod
    def leave() -> None:
        """End the group that `joined` joined, if it did."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every world-th of the items: what this process works on where all would do the same."""
        return items[self.rank :: self.world]

    def agreed(self, value: float, device: torch.device) -> float:
        """The first process's value, for what each measures for itself, such as time."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def share(self, batch: int, sessions: int) -> Share:
        """This process's sequences of a batch with equally many of each session.

        Raises `BadInput` unless the processes can share each session's sequences equally.
        """
        each = batch // sessions
        if each % self.world:
            raise BadInput("train.batch", "sequences a session", each,
                           f"a multiple of the {self.world} processes")
        first, stop = self.rank * each // self.world, (self.rank + 1) * each // self.world
        rows = torch.arange(batch).view(sessions, each)[:, first:stop].flatten()
        return Share(slice(first, stop), rows)

    def seed_dropout(self, seed: int, step: int) -> None:
        """Seed the layers' own dropout for a step; every process draws its own."""
        torch.manual_seed(mixed_seed(seed, step, self.rank + 1))

    def summed(self, values: Tensor) -> Tensor:
        """The sum of each process's values."""
        if self.world > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def total(self, value: Tensor) -> float:
        """The sum of one number over the processes."""
        return float(self.summed(value.detach()))

    def add_gradients(self, model: nn.Module) -> None:
        """Sum gradients; parameters that no process used keep none, so that they stay put."""
        if self.world == 1:
            return
        parameters = list(model.parameters())
        used = torch.tensor([float(p.grad is not None) for p in parameters],
                            device=parameters[0].device)
        wanted = [p for p, u in zip(parameters, self.summed(used).tolist(), strict=True) if u]
        flat = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in wanted
        ])
        torch.distributed.all_reduce(flat)
        pieces = flat.split([p.numel() for p in wanted])
        for parameter, piece in zip(wanted, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
