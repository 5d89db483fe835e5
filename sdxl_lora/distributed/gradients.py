"""Parameters and gradients of several processes as one message, for a model that is not in DDP.

DDP sends while gradients arise, which is no part of a recorded step; here they are sent once all of them are there.
"""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn


def share_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the values of the first one's."""
    values = [parameter.detach() for parameter in parameters]
    flat = torch._utils._flatten_dense_tensors(values)
    torch.distributed.broadcast(flat, 0)
    torch._foreach_copy_(values, torch._utils._unflatten_dense_tensors(flat, values))


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Let the gradient of every process be the mean over all of them, where DDP divides too: before the sum.

    Whether a parameter has a gradient must be the same everywhere.
    """
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients).div_(torch.distributed.get_world_size())
    torch.distributed.all_reduce(flat)
    torch._foreach_copy_(gradients, torch._utils._unflatten_dense_tensors(flat, gradients))
