"""One step by itself: what it is given goes in, the adapter and the metrics come out changed, nothing else."""

from collections import Counter

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from examples.full_sdxl import UNET
from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.config.sections.adapter import DEFAULT_TARGETS
from sdxl_lora.lora.state import lora_state
from sdxl_lora.models.text_encoders import encode_prompts
from sdxl_lora.training.batch_shape import BatchShape
from sdxl_lora.training.metrics import StepMetrics
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.runs import assert_equal_weights, largest_difference


def step_of(built, shape=None):
    metrics = StepMetrics(built.accelerator.device, 4, built.model.num_train_timesteps)
    of_run = built.run, built.logger
    return TrainStep(
        built.config, built.accelerator, built.model, built.optimizer, shape or built.shape, metrics, *of_run
    )


def first_step_of(built, train_step):
    with torch.no_grad():
        batches = built.data.batches(0, train_step.shape)
        batch = next(batches)
        batches.close()
    return batch


def losses_of(train_step, batch):
    """Of each image, with no trace in the gradients."""
    losses = []
    for _, tensors in batch.micro_batches:
        share = torch.zeros(())
        losses += train_step.compute({**train_step.on_device(tensors), "share": share}).tolist()
    train_step.optimizer.zero_grad()
    return losses


def test_a_step_goes_down_the_mean_loss_at_the_rate_it_is_given(build):
    built = build(train_batch_size=2, adam_weight_decay=0.0)
    train_step = step_of(built)
    batch = first_step_of(built, train_step)
    before, losses = lora_state(built.model.unet), losses_of(train_step, batch)
    train_step(batch, 0, 0.0)
    assert_equal_weights(lora_state(built.model.unet), before)
    numbers = train_step.metrics.flush()
    assert numbers.loss == pytest.approx(sum(losses) / 2) and numbers.images == 2 and numbers.finite_steps == 1
    assert numbers.names == [batch.names] and len(batch.names) == 2
    train_step(batch, 1, 1e-3)
    assert 5e-4 < largest_difference(lora_state(built.model.unet), before) < 2e-3, "Adam moves by the rate"
    assert sum(losses_of(train_step, batch)) < sum(losses)
    base = {parameter for name, parameter in built.model.unet.named_parameters() if "lora_" not in name}
    assert all(parameter.grad is None for parameter in base)


def test_two_micro_steps_are_one_step_of_both(build, tmp_path):
    weights, losses = [], []
    for folder, shape in (("whole", BatchShape(2, 1)), ("halves", BatchShape(1, 2))):
        built = build(train_batch_size=2, adam_epsilon=1e-4, output_dir=str(tmp_path / folder))
        train_step = step_of(built, shape)
        batch = first_step_of(built, train_step)
        assert len(batch.micro_batches) == shape.micro_steps == built.accelerator.gradient_accumulation_steps
        train_step(batch, 0, 1e-3)
        weights.append(lora_state(built.model.unet))
        losses.append(train_step.metrics.flush().loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and largest_difference(*weights) < 1e-6


def preserving(built, train_step):
    """What a step that preserves is given, of the first step's images."""
    samples = next(iter(built.data.samples_from(0)))[1]
    return train_step.on_device(built.data.collator(train_step.shape)(samples, preserves=True))


@pytest.mark.parametrize(
    "trained", [{}, {"train_text_encoder": True}, {"train_text_encoder": True, "train_unet": False}]
)
def test_a_preserving_step_learns_what_the_base_predicts_for_the_class(build, tmp_path, captioned_photographs, trained):
    """Nothing with an adapter that is zero; else the target is that of a base that never had one."""
    entry = f"{{train_data_dir: '{captioned_photographs}', trigger_word: sks}}"
    settings = {
        "train_data_dir": None, "datasets": (entry,), "output_preservation": 0.5, "preservation_class": "thing",
        **trained, "train_batch_size": 2, "snr_gamma": 5.0, "prior_loss_weight": 2.0,
    }  # fmt: skip
    built = build(**settings)
    train_step = step_of(built)
    batch = preserving(built, train_step)
    assert batch["loss_weight"].tolist() == [2.0, 2.0]
    assert train_step.compute({**batch, "share": torch.ones(())}).tolist() == [0.0, 0.0]

    with torch.no_grad():
        for parameter in built.model.adapter_parameters().values():
            parameter.add_(0.05)
    batch = preserving(built, train_step)  # read anew by text encoders that have changed
    losses = train_step.compute({**batch, "share": torch.ones(())})
    assert losses.min() > (1e-4 if trained.get("train_unet", True) else 1e-6)  # captions alone change less
    assert all(parameter.grad is not None for parameter in built.model.adapter_parameters().values())
    target = train_step.base_prediction(batch)
    torch.testing.assert_close(target, prediction_of_the_base_alone(built, batch, "thing"), rtol=1e-4, atol=1e-5)


def prediction_of_the_base_alone(built, batch, word):
    """By models that are loaded anew, for the captions with `word` in place of the trigger word."""
    names = [sample.example for sample in next(iter(built.data.samples_from(0)))[1]]
    captions = [built.data.examples[name].caption.replace("sks", word) for name in names]
    assert all(caption.startswith(f"{word}, a") for caption in captions)
    pipeline = StableDiffusionXLPipeline.from_pretrained(built.base.path)
    encoders = (pipeline.tokenizer, pipeline.tokenizer_2), (pipeline.text_encoder, pipeline.text_encoder_2)
    embeds, pooled = zip(*(encode_prompts([caption], *encoders) for caption in captions), strict=True)
    noisy = built.model.scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    more = {"text_embeds": torch.cat(pooled), "time_ids": batch["time_ids"]}
    with torch.no_grad():
        return pipeline.unet(
            noisy, batch["timesteps"], encoder_hidden_states=torch.cat(embeds), added_cond_kwargs=more
        ).sample


MOST_OPERATIONS = 5500  # of a step of SDXL by the defaults in half precision: 5,489; with each layer by itself 10,000
NO_WORK = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "_local_scalar_dense")


class Operations(TorchDispatchMode):
    """Counts the operations that compute: neither views nor allocations. One over a list of tensors is one."""

    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        aliases = [result.alias_info for result in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and name not in NO_WORK:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def base_of_full_depth(tmp_path_factory):
    """The tiny base with as many blocks and layers as SDXL has."""
    folder = tmp_path_factory.mktemp("models") / "full-depth"
    pipeline = tiny_sdxl()
    depth = {name: UNET[name] for name in ("layers_per_block", "transformer_layers_per_block")}
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, **depth})
    pipeline.save_pretrained(folder)
    return folder


def test_a_step_of_sdxl_has_no_more_operations_than_it_had(build, base_of_full_depth):
    """Forward, backward, clipping and the optimizer's step, in bfloat16, after a first step that makes its state."""
    built = build(
        pretrained_model_name_or_path=str(base_of_full_depth),
        mixed_precision="bf16",
        rank=2,
        target_modules=DEFAULT_TARGETS,
    )
    train_step = step_of(built)
    batch = first_step_of(built, train_step)
    train_step(batch, 0, 1e-3)
    with Operations() as operations:
        train_step(batch, 1, 1e-3)
    most = operations.count.most_common(12)
    assert operations.count.total() <= MOST_OPERATIONS, most
    assert operations.count["_to_copy"] + operations.count["copy_"] < 60, "all adapters are cast at once"
    assert operations.count["div"] < 10, "nothing is divided by one"
