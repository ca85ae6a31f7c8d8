"""Several processes, one result: who am I, what do the others have, and did one of them fail."""

import dataclasses as dc
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from pellucid._checks import ConfigError, PellucidError
from pellucid.taps.hookable import is_sharded

T = TypeVar("T")

# How torchrun and accelerate, and the three MPI families, say how many processes there are.
WORLD_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dc.dataclass(frozen=True)
class Ranks:
    """This process among `world` processes that share one pass."""

    rank: int = 0
    world: int = 1

    def gather(self, mine: T) -> list[T]:
        """What every process has, by rank; the same list in all of them."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine)
        return found

    def together(self, work: Callable[[], None]) -> None:
        """Run `work` here and in the other processes; if it fails in one, all of them raise.

        Without this the others would wait for ever for the share of the process that failed.
        """
        if self.world == 1:
            return work()
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        reports = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, report in enumerate(reports):
            if report is not None:
                raise PellucidError(f"the pass failed in process {rank} of {self.world}: {report}")
        return None


def find_ranks(device: torch.device) -> Ranks:
    """The processes that `torchrun` or `accelerate launch` started, or this one alone.

    A process group that exists is used as it is; otherwise accelerate starts one when the launcher's variables say
    that there are several processes.
    """
    if not torch.distributed.is_available():
        return Ranks()
    if not torch.distributed.is_initialized():
        world = max(int(os.environ.get(name, "1")) for name in WORLD_VARIABLES)
        if world == 1:
            return Ranks()
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")
        if not torch.distributed.is_initialized():
            raise ConfigError(
                f"{world} processes were launched but no process group could be started on {device}: start one with "
                "torch.distributed.init_process_group, or run record in one process"
            )
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def choose_device(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """Where to run: the named device, or where the model is.

    An accelerator without a number means the one of this process (`LOCAL_RANK`) under a launcher.

    Raises:
        ConfigError: no such device; the message lists those there are.
    """
    if device is None:
        first = next(model.parameters(), None)
        return torch.device("cpu") if first is None else first.device
    there = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator(check_available=True)
        there += [f"{kind}:{i}" for i in range(torch.accelerator.device_count())]
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"no such device {str(device)!r}; available: {there}") from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if ":" not in str(chosen):
        chosen = torch.device(chosen.type, int(os.environ.get("LOCAL_RANK", "0")))
    if str(chosen) not in there:
        raise ConfigError(f"no such device {str(device)!r}; available: {there}")
    return chosen


def refuse_sharded(model: nn.Module, ranks: Ranks) -> None:
    """Sharded parameters meet in every forward, and processes here run different numbers of forwards."""
    if ranks.world > 1 and is_sharded(model):
        raise ConfigError(
            "record cannot run an FSDP model in several processes: they would wait for each other's parameters; "
            "gather the full weights into a plain model first"
        )
