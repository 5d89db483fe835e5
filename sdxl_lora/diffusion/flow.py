"""Rectified flow: straight paths between images and noise, for training and sampling (arXiv:2209.03003).

    noisy = (1 - sigma) latents + sigma noise        velocity = noise - latents

sigma is the share of noise. The UNet gets sigma times the number of timesteps as its timestep, as in diffusers' SD3
scheduler and ComfyUI's ModelSamplingSD3. Knows nothing of losses.
"""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

FLOW = "flow"


class FlowSchedule:
    """Noise schedule of a flow, in place of the DDPMScheduler of other objectives.

    Timestep t of T has sigma = shift s / (1 + (shift - 1) s) for s = (t + 1) / T, so that the last one is pure noise.

    Args:
        shift: values above 1 put more noise at each timestep (arXiv:2403.03206, section 5.3.2).
    """

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        self.config = SimpleNamespace(num_train_timesteps=num_train_timesteps, prediction_type=FLOW, shift=shift)
        table = FlowMatchEulerDiscreteScheduler(num_train_timesteps, shift)
        self._sigmas, self._times = table.sigmas.flip(0), table.timesteps.flip(0)

    def sigmas(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the share of noise (B,) at timesteps (B,) int64."""
        self._sigmas = self._sigmas.to(timesteps.device)  # keep it there: a CUDA graph cannot copy it from the host
        return self._sigmas[timesteps]

    def times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the UNet's timestep input (B,) float32 for timesteps (B,) int64."""
        self._times = self._times.to(timesteps.device)
        return self._times[timesteps]

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the paths' points (B, C, h, w) at timesteps (B,)."""
        sigmas = self.sigmas(timesteps).reshape(-1, 1, 1, 1)
        return (1 - sigmas) * latents + sigmas * noise

    def get_velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the paths' direction (B, C, h, w), the same at all timesteps."""
        return noise - latents

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the image's variance over the noise's (B,); 0 at the last timestep."""
        sigmas = self.sigmas(timesteps)
        return ((1 - sigmas) / sigmas) ** 2


class FlowSampler:
    """Adapter of FlowMatchEulerDiscreteScheduler to the interface that StableDiffusionXLPipeline expects.

    The pipeline uses init_noise_sigma and scale_model_input, which a flow does not need and that class lacks.
    Steps are equal before the shift, from pure noise to the image: sigma = 1, (n - 1) / n, ... 0.
    """

    order, init_noise_sigma = 1, 1.0

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        self._euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps, shift)

    @property
    def config(self):
        return self._euler.config

    @property
    def timesteps(self) -> torch.Tensor:
        return self._euler.timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self._euler.set_timesteps(sigmas=sigmas, device=device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._euler.set_begin_index(begin_index)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the sample unchanged."""
        return sample

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True):
        """Move along the velocity to the next sigma."""
        return self._euler.step(model_output, timestep, sample, return_dict=return_dict)
