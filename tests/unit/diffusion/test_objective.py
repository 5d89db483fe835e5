"""The loss, computed by hand."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.diffusion.objective import (
    elementwise_loss,
    huber_scale,
    noise_prediction_loss,
    snr_of,
    snr_weights,
)
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import Base, load_schedulers


def schedule_of(prediction_type):
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


@pytest.fixture
def sample():
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
def test_loss_is_the_mean_squared_distance_to_the_target_by_hand(sample, prediction_type):
    signal, sigma = signal_and_noise(sample["timesteps"])
    noisy = signal * sample["latents"] + sigma * sample["noise"]
    target = {
        "epsilon": sample["noise"],
        "v_prediction": signal * sample["noise"] - sigma * sample["latents"],
        "sample": sample["latents"],
    }[prediction_type]

    def unet(sample, timesteps, encoder_hidden_states, added_cond_kwargs):
        torch.testing.assert_close(sample, noisy, atol=1e-5, rtol=1e-5)
        assert set(added_cond_kwargs) == {"text_embeds", "time_ids"}
        return SimpleNamespace(sample=0.5 * sample)

    loss = noise_prediction_loss(unet, schedule_of(prediction_type), conditions=CONDITIONS, **sample)
    by_hand = torch.stack([((0.5 * noisy[i] - target[i]) ** 2).sum() / (4 * 8 * 8) for i in range(3)])
    torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=1e-5)


def test_perfect_prediction_has_no_loss(sample):
    schedule = schedule_of("v_prediction")
    velocity = schedule.get_velocity(sample["latents"], sample["noise"], sample["timesteps"])
    loss = noise_prediction_loss(
        lambda *_, **__: SimpleNamespace(sample=velocity), schedule, conditions=CONDITIONS, **sample
    )
    assert loss.shape == (3,) and loss.max() == 0


def test_unknown_prediction_type_is_an_error(sample):
    with pytest.raises(ValueError, match="it must be epsilon, v_prediction, flow or sample"):
        noise_prediction_loss(
            lambda sample, *_, **__: SimpleNamespace(sample=sample),
            schedule_of("score"),
            conditions=CONDITIONS,
            **sample,
        )


def test_training_noises_like_ddpm_though_the_base_names_euler(tiny_base, sample):
    schedule, sampling_schedule = load_schedulers(Base(str(tiny_base)))
    signal, sigma = signal_and_noise(sample["timesteps"])
    noisy = schedule.add_noise(sample["latents"], sample["noise"], sample["timesteps"])
    torch.testing.assert_close(noisy, signal * sample["latents"] + sigma * sample["noise"], atol=1e-5, rtol=1e-5)
    assert type(sampling_schedule).__name__ == "EulerDiscreteScheduler"
    assert sampling_schedule.config.steps_offset == 1


def test_prediction_type_is_the_bases_unless_told(tiny_base):
    assert load_schedulers(Base(str(tiny_base)))[0].config.prediction_type == "epsilon"
    told = load_schedulers(Base(str(tiny_base)), ObjectiveConfig("v_prediction"))
    assert [schedule.config.prediction_type for schedule in told] == ["v_prediction", "v_prediction"]


def loss_of(sample, schedule, objective, prediction=0.0, **conditions):
    """The loss of a UNet that predicts the same number everywhere."""
    return noise_prediction_loss(
        lambda sample, *_, **__: SimpleNamespace(sample=torch.full_like(sample, prediction)),
        schedule,
        sample["latents"],
        {**CONDITIONS, **conditions},
        sample["noise"],
        sample["timesteps"],
        objective,
    )


def test_min_snr_by_hand(sample):
    signal, sigma = signal_and_noise(sample["timesteps"])
    snr = (signal / sigma).flatten() ** 2
    for prediction_type, divisor in [("epsilon", snr), ("v_prediction", snr + 1), ("sample", torch.ones(3))]:
        schedule = schedule_of(prediction_type)
        plain, weighted = (loss_of(sample, schedule, ObjectiveConfig(snr_gamma=gamma)) for gamma in (None, 5.0))
        expected = torch.stack([min(snr[i], torch.tensor(5.0)) / divisor[i] for i in range(3)])
        torch.testing.assert_close(weighted / plain, expected, rtol=1e-4, atol=0)
    assert snr_weights(torch.tensor([20.0, 5.0, 0.5]), "epsilon", 5.0).tolist() == pytest.approx([0.25, 1, 1])
    assert snr_weights(torch.tensor([20.0, 0.5]), "v_prediction", 5.0).tolist() == pytest.approx([5 / 21, 0.5 / 1.5])


def test_snr_is_diffusers():
    from diffusers.training_utils import compute_snr

    schedule, timesteps = schedule_of("epsilon"), torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(snr_of(schedule, timesteps), compute_snr(schedule, timesteps), rtol=1e-3, atol=0)


def test_weights_make_epsilon_and_v_the_same_loss(sample):
    """A picture's error is the same whichever of the two a UNet predicts, and so is the weighted loss."""
    image = 0.9 * sample["latents"]  # the picture that both predict
    signal, sigma = signal_and_noise(sample["timesteps"])
    noisy = signal * sample["latents"] + sigma * sample["noise"]
    implied_noise = (noisy - signal * image) / sigma
    predictions = {"epsilon": implied_noise, "v_prediction": signal * implied_noise - sigma * image}
    for objective in (ObjectiveConfig(snr_gamma=5.0), ObjectiveConfig(debiased_estimation=True)):
        losses = [
            noise_prediction_loss(
                lambda *_, value=value, **__: SimpleNamespace(sample=value),
                schedule_of(kind), sample["latents"], CONDITIONS, sample["noise"], sample["timesteps"], objective,
            )
            for kind, value in predictions.items()
        ]  # fmt: skip
        torch.testing.assert_close(losses[0][1:], losses[1][1:], rtol=2e-3, atol=1e-6)  # at 0, epsilon loses digits


def test_debiased_estimation_by_hand():
    snr = torch.tensor([16.0, 0.25])
    assert snr_weights(snr, "epsilon").tolist() == pytest.approx([1 / 4, 2])
    assert snr_weights(snr, "v_prediction").tolist() == pytest.approx([4 / 17, 0.5 / 1.25])


def test_a_timestep_of_noise_alone_gives_finite_weights(sample):
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        schedule = DDPMScheduler.from_config(schedule_of(prediction_type).config, rescale_betas_zero_snr=True)
        snr = snr_of(schedule, torch.tensor([999]))
        assert snr.item() < 1e-6
        for gamma in (None, 5.0):
            assert 0 <= snr_weights(torch.zeros(1), prediction_type, gamma).item() < 100
        for objective in (
            ObjectiveConfig(snr_gamma=5.0),
            ObjectiveConfig(debiased_estimation=True),
            ObjectiveConfig(loss_type="huber", huber_c=0.1, huber_schedule="snr"),
        ):
            assert loss_of(sample, schedule, objective).isfinite().all()


def test_huber_losses_by_hand():
    error, target = torch.tensor([0.0, 1e-3, 30.0, -40.0]), torch.zeros(4)
    huber = elementwise_loss(error, target, "huber", 0.1)
    assert huber.tolist() == pytest.approx([0, 1e-6, 2 * 0.1 * 30, 2 * 0.1 * 40], rel=5e-3)
    assert elementwise_loss(error, target, "smooth_l1", 0.1).tolist() == pytest.approx([10 * h for h in huber.tolist()])
    three_four = elementwise_loss(torch.tensor([0.3]), torch.zeros(1), "huber", 0.4)
    assert three_four.item() == pytest.approx(2 * 0.4 * (0.5 - 0.4), rel=1e-5)
    with pytest.raises(ValueError, match="it must be l2, huber or smooth_l1"):
        elementwise_loss(error, target, "l1")


def test_the_scale_of_huber_by_timestep_by_hand():
    schedule, timesteps = schedule_of("epsilon"), torch.tensor([0, 500, 999])
    assert huber_scale(schedule, timesteps, 0.1, "constant").flatten().tolist() == pytest.approx([0.1] * 3)
    exponential = huber_scale(schedule, timesteps, 0.1, "exponential").flatten()
    assert exponential.tolist() == pytest.approx([1, 0.1**0.5, 0.1**0.999], rel=1e-5)
    signal, sigma = signal_and_noise(timesteps)
    by_hand = 0.1 + 0.9 / (1 + sigma / signal) ** 2
    torch.testing.assert_close(huber_scale(schedule, timesteps, 0.1, "snr"), by_hand, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="constant, exponential or snr"):
        huber_scale(schedule, timesteps, 0.1, "linear")


def test_a_masked_loss_is_the_mean_over_the_masks_area(sample):
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, 0, :2, :4], mask[1, 0, 7, 7], mask[2] = 1.0, 0.5, 1.0
    losses = loss_of(sample, schedule_of("epsilon"), ObjectiveConfig(), mask=mask)
    by_hand = [(sample["noise"][0, :, :2, :4] ** 2).mean(), (sample["noise"][1, :, 7, 7] ** 2).mean()]
    torch.testing.assert_close(losses, torch.stack([*by_hand, (sample["noise"][2] ** 2).mean()]))


def test_class_images_weigh_their_weight(sample):
    plain, weighted = (
        loss_of(sample, schedule_of("epsilon"), ObjectiveConfig(), **conditions)
        for conditions in ({}, {"loss_weight": torch.tensor([1.0, 0.5, 0.0])})
    )
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 0.5, 0.0]))


def test_input_perturbation_changes_what_is_seen_and_not_what_is_to_be_predicted(sample):
    seen, input_noise = [], sample["noise"] + 0.1
    loss = noise_prediction_loss(
        lambda noisy, *_, **__: SimpleNamespace(sample=(seen.append(noisy), sample["noise"])[1]),
        schedule_of("epsilon"), sample["latents"], {**CONDITIONS, "input_noise": input_noise}, sample["noise"],
        sample["timesteps"],
    )  # fmt: skip
    assert loss.max() == 0
    signal, sigma = signal_and_noise(sample["timesteps"])
    torch.testing.assert_close(seen[0], signal * sample["latents"] + sigma * input_noise, atol=1e-5, rtol=1e-5)


def test_zero_terminal_snr_trains_and_draws_from_noise_alone(tiny_base, sample):
    schedule, sampling = load_schedulers(Base(str(tiny_base)), ObjectiveConfig("v_prediction", zero_terminal_snr=True))
    last = torch.full((3,), 999)
    torch.testing.assert_close(
        schedule.add_noise(sample["latents"], sample["noise"], last), sample["noise"], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        schedule.get_velocity(sample["latents"], sample["noise"], last), -sample["latents"], atol=1e-5, rtol=0
    )
    sampling.set_timesteps(10)
    assert sampling.timesteps[0] == 999 and sampling.init_noise_sigma > 1000  # next to it, the picture is nothing
    assert sampling.config.timestep_spacing == "trailing"
    plain = load_schedulers(Base(str(tiny_base)), ObjectiveConfig("v_prediction"))
    assert plain[1].config.timestep_spacing != "trailing" and not plain[0].config.rescale_betas_zero_snr


def test_zero_terminal_snr_is_refused_for_epsilon(tiny_base):
    with pytest.raises(ConfigError, match="zero_terminal_snr needs a base that predicts v"):
        load_schedulers(Base(str(tiny_base)), ObjectiveConfig(zero_terminal_snr=True))
