"""Training in several processes, on one machine or many, as started by torchrun; one process needs none of this."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .errors import TrainingError


def join_processes():
    """Meet the other processes, if torchrun started this one."""
    if "RANK" in os.environ:
        if device().type == "cuda":
            torch.cuda.set_device(device())
        # All wait while the first one measures, which may take hours.
        dist.init_process_group("nccl" if device().type == "cuda" else "gloo", timeout=timedelta(days=7))


def leave_processes():
    """Take leave of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device():
    """What this process computes on: a GPU of its own where there are any, otherwise the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def rank():
    """Number of this process, from 0; process 0 reports and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def report(line):
    """Print a line to standard error, once for all processes."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def processes():
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count):
    """Indices, of `count` samples of a batch, that are this process's part.

    Raises
    ------
    TrainingError
        The processes would get parts of different size.
    """
    if count % processes():
        raise TrainingError(f"a batch of {count} cannot be shared out to {processes()} processes: change batch_size")
    return range(rank(), count, processes())


def parallel(network):
    """The network with gradients averaged over all processes."""
    return DistributedDataParallel(network, find_unused_parameters=True) if dist.is_initialized() else network


def mean(value):
    """Mean of a scalar tensor over all processes, as a float."""
    if dist.is_initialized():
        value = value.detach().clone()
        dist.all_reduce(value)
    return value.item() / processes()


def of_the_first(value):
    """What the first process has, in all of them."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wait():
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()
