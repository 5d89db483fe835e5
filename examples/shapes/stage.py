"""A training stage that can be killed and resumed: optimizer, moving average of the weights, log, state on disk.

The loss of a step depends on (seed, step) alone, so a resumed stage takes the same steps as an uninterrupted one.
"""

import json
import math
import os
import time

import torch

WARMUP_STEPS = 100
DECAY_SHARE = 0.3  # constant learning rate, then linear to zero: until then the number of steps can still change
STATE_EVERY_SECONDS = 60


def learning_rate_at(step, steps, peak):
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


def average(averaged, parameters, step):
    """Move `averaged` towards `parameters`, over about a tenth of the steps so far and 500 steps at most."""
    decay = min(0.998, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(averaged, list(parameters), 1 - decay)


def run_stage(name, module, loss_at, steps, peak_lr, work_dir, on_interval=None, interval=500):
    """Train `module` until `steps` and leave the averaged weights in it.

    Args:
        name: of the stage; work_dir gets <name>.jsonl and <name>.pt.
        loss_at: step -> scalar loss tensor.
        on_interval: called with the step every `interval` steps, with the averaged weights in the module.
    Raises:
        ValueError: the gradient is not finite.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    averaged = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    path = os.path.join(work_dir, f"{name}.pt")
    first, seconds = _restore(path, parameters, averaged, optimizer)
    began = saved = time.monotonic() - seconds
    recent = []
    with open(os.path.join(work_dir, f"{name}.jsonl"), "a", encoding="utf-8", buffering=1) as log:
        for step in range(first, steps):
            optimizer.param_groups[0]["lr"] = learning_rate_at(step, steps, peak_lr)
            loss = loss_at(step)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if not math.isfinite(norm):
                raise ValueError(f"{name}: gradient is {norm} at step {step + 1}; lower the learning rate ({peak_lr}).")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average(averaged, parameters, step)
            recent.append(loss.item())
            now = time.monotonic()
            if (step + 1) % 50 == 0 or step + 1 == steps:
                entry = {"stage": name, "step": step + 1, "loss": sum(recent) / len(recent), "seconds": now - began}
                log.write(json.dumps(entry | {"grad_norm": norm.item()}) + "\n")
                recent.clear()
            if now - saved > STATE_EVERY_SECONDS or step + 1 == steps:
                _save(path, step + 1, now - began, parameters, averaged, optimizer)
                saved = now
            if on_interval and ((step + 1) % interval == 0 or step + 1 == steps):
                _swap(parameters, averaged)
                on_interval(step + 1)
                _swap(parameters, averaged)
    _swap(parameters, averaged)


def _swap(parameters, averaged):
    with torch.no_grad():
        for live, mean in zip(parameters, averaged, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)


def _save(path, step, seconds, parameters, averaged, optimizer):
    state = {"step": step, "seconds": seconds, "averaged": averaged, "optimizer": optimizer.state_dict()}
    torch.save(state | {"live": [p.detach() for p in parameters]}, path + ".tmp")
    os.replace(path + ".tmp", path)


def _restore(path, parameters, averaged, optimizer):
    """Return (first step, seconds spent before); (0, 0.0) if nothing was saved."""
    if not os.path.exists(path):
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location=parameters[0].device)
    with torch.no_grad():
        for target, source in zip([*parameters, *averaged], [*state["live"], *state["averaged"]], strict=True):
            target.copy_(source)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]
