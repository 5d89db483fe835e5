"""Parameters and gradients of several processes sent as one message, for a model without DDP.

DDP sends gradients during the backward pass, which a recorded step cannot do; here they are sent together after it.
"""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn


def share_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Copy the first process's values to every process."""
    values = [parameter.detach() for parameter in parameters]
    flat = torch._utils._flatten_dense_tensors(values)
    torch.distributed.broadcast(flat, 0)
    torch._foreach_copy_(values, torch._utils._unflatten_dense_tensors(flat, values))


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients of every process by their mean over all, divided before the sum as in DDP.

    The same parameters must have gradients on every process.
    """
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients).div_(torch.distributed.get_world_size())
    torch.distributed.all_reduce(flat)
    torch._foreach_copy_(gradients, torch._utils._unflatten_dense_tensors(flat, gradients))
