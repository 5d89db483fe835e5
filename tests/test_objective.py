"""The loss, computed by hand."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from sdxl_lora.models import Base, load_schedulers
from sdxl_lora.objective import noise_prediction_loss


def schedule_of(prediction_type):
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


@pytest.fixture
def turn():
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(3, 4, 8, 8, generator=generator),
        "noise": torch.randn(3, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([0, 500, 999]),
    }


CONDITIONS = {"prompt_embeds": torch.zeros(3, 77, 4), "pooled_embeds": torch.zeros(3, 4), "time_ids": torch.zeros(3, 6)}


def signal_and_noise(timesteps):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[timesteps].reshape(-1, 1, 1, 1)
    return kept.sqrt().float(), (1 - kept).sqrt().float()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_is_the_mean_squared_distance_to_the_target_by_hand(turn, prediction_type):
    signal, sigma = signal_and_noise(turn["timesteps"])
    noisy = signal * turn["latents"] + sigma * turn["noise"]
    target = {
        "epsilon": turn["noise"],
        "v_prediction": signal * turn["noise"] - sigma * turn["latents"],
        "sample": turn["latents"],
    }[prediction_type]

    def unet(sample, timesteps, encoder_hidden_states, added_cond_kwargs):
        torch.testing.assert_close(sample, noisy, atol=1e-5, rtol=1e-5)
        assert set(added_cond_kwargs) == {"text_embeds", "time_ids"}
        return SimpleNamespace(sample=0.5 * sample)

    loss = noise_prediction_loss(unet, schedule_of(prediction_type), conditions=CONDITIONS, **turn)
    by_hand = torch.stack([((0.5 * noisy[i] - target[i]) ** 2).sum() / (4 * 8 * 8) for i in range(3)])
    torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=1e-5)


def test_perfect_prediction_has_no_loss(turn):
    schedule = schedule_of("v_prediction")
    velocity = schedule.get_velocity(turn["latents"], turn["noise"], turn["timesteps"])
    loss = noise_prediction_loss(
        lambda *_, **__: SimpleNamespace(sample=velocity), schedule, conditions=CONDITIONS, **turn
    )
    assert loss.shape == (3,) and loss.max() == 0


def test_unknown_prediction_type_is_an_error(turn):
    with pytest.raises(ValueError, match="it must be epsilon, v_prediction or sample"):
        noise_prediction_loss(
            lambda sample, *_, **__: SimpleNamespace(sample=sample), schedule_of("score"), conditions=CONDITIONS, **turn
        )


def test_training_noises_like_ddpm_though_the_base_names_euler(tiny_base, turn):
    schedule, sampling_schedule = load_schedulers(Base(str(tiny_base)))
    signal, sigma = signal_and_noise(turn["timesteps"])
    noisy = schedule.add_noise(turn["latents"], turn["noise"], turn["timesteps"])
    torch.testing.assert_close(noisy, signal * turn["latents"] + sigma * turn["noise"], atol=1e-5, rtol=1e-5)
    assert type(sampling_schedule).__name__ == "EulerDiscreteScheduler"
    assert sampling_schedule.config.steps_offset == 1


def test_prediction_type_is_the_bases_unless_told(tiny_base):
    assert load_schedulers(Base(str(tiny_base)))[0].config.prediction_type == "epsilon"
    told = load_schedulers(Base(str(tiny_base)), "v_prediction")
    assert [schedule.config.prediction_type for schedule in told] == ["v_prediction", "v_prediction"]
