"""Trial of an optimizer on tiny parameters before the base is loaded, so that errors show within seconds."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Sequence

import torch
from accelerate.utils import load
from torch.optim import Optimizer

from sdxl_lora.errors import ConfigError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # torch's errors have them even without a terminal
LINEAR, CONVOLUTION, MAGNITUDE = (4, 32), (4, 8, 3, 3), (32,)


def try_optimizer(
    name: str, make: Callable[[list[dict]], Optimizer], shapes: Sequence[tuple[int, ...]], device: torch.device
) -> None:
    """Take two steps, then save and load the state as checkpoints do.

    Args:
        make: makes the optimizer from parameter groups.
        shapes: of the trained parameters; see LINEAR, CONVOLUTION and MAGNITUDE.
    Raises:
        ConfigError: it needs a closure, sparse gradients or other shapes, gives NaN, or its state cannot be saved.
    """
    said = io.StringIO()  # output and warnings are dropped: the run's own optimizer repeats them
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")
        parameters = [torch.nn.Parameter(torch.full(shape, 0.01, device=device)) for shape in shapes]
        optimizer = make([{"params": parameters}])  # raises by itself for rejected arguments
        try:
            for _ in range(2):
                step(optimizer, parameters)
            if not all(parameter.isfinite().all() for parameter in parameters):
                raise ArithmeticError("it gives NaN or infinity in its first steps")
            state = optimizer.state_dict()
            if not (isinstance(state, dict) and {"state", "param_groups"} <= set(state)):
                raise TypeError("its state_dict has no state and param_groups")
            again = make([{"params": parameters}])
            again.load_state_dict(there_and_back(state, device))
            step(again, parameters)
        except Exception as error:  # optimizers raise every kind
            raise ConfigError(f"optimizer {name} cannot train here: {reason(error)}") from error


def step(optimizer: Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    if hasattr(optimizer, "train"):
        optimizer.train()
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 1e-3 * (-1) ** number)
    optimizer.step()
    optimizer.zero_grad()


def there_and_back(state: dict, device: torch.device) -> dict:
    """Return a state written and read as accelerate does it, which accepts only tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return load(file, map_location=device)


def reason(error: Exception) -> str:
    """Return a message that names the optimizer's unmet need."""
    said = COLOURS.sub("", (str(error).strip().splitlines() or [type(error).__name__])[0])
    if "closure" in said:
        return (
            f"it needs a closure that computes the loss again, which a training on many images does not have ({said})"
        )
    if "sparse" in said or "dense" in said:
        return f"it is for sparse gradients, a LoRA's are dense ({said})"
    if "pickle" in said or "Weights only load" in said:
        return f"its state holds more than tensors and plain values, which a checkpoint cannot keep ({said[:80]})"
    return f"{said} (tried on parameters of two dimensions, with convolutions four, with DoRA one)"
