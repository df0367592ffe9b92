"""Read torchrun's environment, and exchange values among its processes.

They talk JSON and bytes over gloo, so that CPUs and GPUs of any make do; tensors that lie on GPUs go over NCCL where
each rank has one. A process that runs alone tells itself, and needs no torch for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import RankEndedError, UserError

if TYPE_CHECKING:
    from torch import Tensor

#: The first rank may wait long for another job, and all for the slowest. Who dies is noticed by its closed connection.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of one job; all of them call the methods below in the same order.

    Attributes:
        rank: from 0.
        size: how many processes there are.
        local_rank: among those of this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        """As torchrun, or a launcher that sets the same variables, says; alone where none does."""
        try:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local_rank = int(os.environ.get("LOCAL_RANK", "0"))
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        except (KeyError, ValueError):
            return ALONE
        if "MASTER_ADDR" not in os.environ or not 0 <= rank < size or local_rank < 0:
            return ALONE
        return cls(rank=rank, size=size, local_rank=local_rank, local_size=max(1, local_size))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that does what only one may do."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @contextmanager
    def joined(self, *, tensors: bool = False) -> Iterator[None]:
        """Connect all ranks for the while; ``tensors`` says whether GPUs' tensors will go between them.

        Raises:
            UserError: they can't reach each other.
        """
        if self.is_alone:
            yield
            return
        import torch
        import torch.distributed as dist

        own_gpus = dist.is_nccl_available() and torch.cuda.device_count() >= self.local_size
        try:
            with _stdout_on_stderr():
                dist.init_process_group("cpu:gloo,cuda:nccl" if tensors and own_gpus else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"the ranks cannot reach each other ({reason}); GLOO_SOCKET_IFNAME names the network interface to use"
            ) from error
        try:
            yield
        finally:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self._gather_bytes(b"")

    def share(self, value: Any) -> Any:
        """The first rank's JSON value, on every rank; what the others give is passed over."""
        if self.is_alone:
            return value
        import torch
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(json.dumps(value if self.is_first else None).encode()), dtype=torch.uint8)
        size = torch.tensor([len(data)])
        with _reached():
            dist.broadcast(size, src=0)
            if not self.is_first:
                data = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, src=0)
        return json.loads(data.numpy().tobytes())

    def require_same(self, value: Any, what: str) -> None:
        """Raises UserError where this rank's JSON value is not the first's; ``what`` names it."""
        if value != self.share(value):
            raise UserError(f"this rank's {what} differ from the first one's: start all ranks alike, on the same files")

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, by rank, on every rank."""
        if self.is_alone:
            return [value]
        return [json.loads(data) for data in self._gather_bytes(json.dumps(value).encode())]

    def gather_rows(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Every rank's rows, (n, k) each, one rank's after the other's, on every rank."""
        if self.is_alone:
            return rows
        data = b"".join(self._gather_bytes(np.ascontiguousarray(rows).tobytes()))
        return np.frombuffer(data, np.uint8).reshape(-1, rows.shape[1])

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all ranks, the same bits on each, in the place of each tensor; all on one device."""
        if not self.is_alone:
            import torch.distributed as dist

            _exchange(tensors, dist.all_reduce)

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """Put the first rank's values in the place of each tensor; all on one device."""
        if not self.is_alone:
            import torch.distributed as dist

            _exchange(tensors, partial(dist.broadcast, src=0))

    def part(self, count: int) -> slice:
        """This rank's part of so many things in a row."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank goes ahead, then the first of each machine, then the rest: what one downloads, others find."""
        turn = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.barrier()
        yield
        for _ in range(2 - turn):
            self.barrier()

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        if self.is_alone:
            return [data]
        import torch
        import torch.distributed as dist

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _reached():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = max(map(int, sizes))
            if not longest:
                return [b""] * self.size
            padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
            each: list[Tensor] = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(each, padded)
        return [part.numpy().tobytes()[: int(size)] for part, size in zip(each, sizes, strict=True)]


#: One process by itself.
ALONE = Ranks()


def _exchange(tensors: Iterable[Tensor], how: Callable[[Tensor], object]) -> None:
    """All tensors of a type together: each by itself would wait for every rank."""
    import torch

    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor.detach())
    for alike in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        with _reached():
            how(flat)
        for tensor, values in zip(alike, flat.split_with_sizes([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(values.view(tensor.shape))


@contextmanager
def _reached() -> Iterator[None]:
    """What gloo says of a connection that was closed, in one line."""
    try:
        yield
    except RuntimeError as error:
        raise RankEndedError from error


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Some releases of gloo greet on stdout, which is for JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
