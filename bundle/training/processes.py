"""Training in several processes: torchrun starts them, `configs/multi_gpu.json` tells each who it is."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def in_step(network: nn.Module, device: torch.device, world_size: int = 1) -> nn.Module:
    """`network` on its device; with several processes, wrapped so that they average gradients and stay equal.

    On GPUs batch statistics are shared, too. On CPUs torch cannot share them: only networks without batch norm (all but
    the defocus estimator) then train as one process would.
    """
    network = network.to(device)
    if world_size == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network)
