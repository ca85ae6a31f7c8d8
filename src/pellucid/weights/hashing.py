"""A name for the weights a result was computed with."""

import hashlib

import torch
from torch import Tensor, nn

from pellucid.taps.find import canonical, unwrap


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) over name, type, shape and bytes of every tensor in the state dict, by sorted
    name.

    Wrappers (DDP, FSDP, `torch.compile`) and the device make no difference; one bit of one weight does.
    """
    digest = hashlib.sha256()
    state = unwrap(model).state_dict()
    tensors = {canonical(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\n{value.dtype}\n{list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
