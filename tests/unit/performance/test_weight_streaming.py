"""Weights that come to the device block by block give the bits of those that stay there, and are gone between uses."""

import weakref

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_parameters
from sdxl_lora.models.loading import Base, load_unet
from sdxl_lora.performance.compute import checkpoint_blocks
from sdxl_lora.performance.frozen_layers import use_memory_saving_layers
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.memory_budget import base_bytes
from sdxl_lora.performance.quantization import quantize_linears
from sdxl_lora.performance.weight_streaming import AT_ONCE, WeightStream, blocks_of, frozen_tensors, stream_weights
from sdxl_lora.run.events import read_events
from tests.helpers.runs import assert_equal_weights, weights_of

CPU = torch.device("cpu")


def unet_of(base, dtype=torch.float32, kind=None, recomputes=False, **adapter):
    """The tiny UNet as it trains, in this machine's memory."""
    unet = load_unet(Base(str(base)), dtype)
    if kind:
        quantize_linears(unet, kind)
    add_lora(unet, 4, 6, targets="attention+ff", **adapter)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter_parameters(unet).values():
        parameter.data += torch.randn(parameter.shape, generator=generator) / 20
    use_memory_saving_layers(unet)
    fuse_lora(unet, streams=True)
    if recomputes:
        checkpoint_blocks(unet)
    return unet.train()


def step(unet, device=CPU):
    """The prediction, and the gradients of a forward and a backward."""
    generator, dtype = torch.Generator().manual_seed(1), unet.dtype

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    conditions = {"text_embeds": normal(2, 32), "time_ids": torch.ones(2, 6, device=device)}
    times = torch.tensor([500, 20], device=device)
    out = unet(normal(2, 4, 8, 8), times, normal(2, 77, 56), added_cond_kwargs=conditions).sample
    out.float().square().sum().backward()
    gradients = [parameter.grad for parameter in adapter_parameters(unet).values()]
    unet.zero_grad()
    return [out.detach(), *gradients]


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8"), (torch.float32, "nf4")]
)
def test_the_bits_are_those_of_weights_that_stay(tiny_base, dtype, kind, recomputes):
    expected = step(unet_of(tiny_base, dtype, kind, recomputes))
    streamed = unet_of(tiny_base, dtype, kind, recomputes)
    stream = stream_weights(streamed, CPU)
    waiting = [block.values.clone() for block in stream.blocks]
    for _ in range(2):  # the first one learns the order
        results = step(streamed)
        assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
    assert all(torch.equal(block.values, before) for block, before in zip(stream.blocks, waiting, strict=True))


@pytest.mark.parametrize("kind", [None, "int8"])
def test_dora_has_the_same_bits_and_the_same_nearest_lora(tiny_base, tmp_path, kind):
    """The nearest LoRA is found by the base's weights, which are read at home."""
    models = {name: unet_of(tiny_base, kind=kind, use_dora=True) for name in ("resident", "streamed")}
    stream = stream_weights(models["streamed"], CPU)
    results = [step(model) for model in models.values()]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    with stream.at_home():
        for name, model in models.items():
            write_lora_files(tmp_path / name, "lora", {"unet": model}, "fp32")
    assert all(tensor.isnan().all() for *_, tensor in frozen_tensors(stream.blocks[0].module) if tensor.ndim > 1)
    for file in (tmp_path / "resident").iterdir():
        assert (tmp_path / "streamed" / file.name).read_bytes() == file.read_bytes()
    assert torch.equal(step(models["streamed"])[0], results[0][0])


def test_a_streamed_run_of_dora_saves_what_another_does(train, tmp_path):
    settings = {"max_train_steps": 1, "learning_rate": 1e-2, "use_dora": True}
    runs = [
        train(output_dir=str(tmp_path / str(streams) / "lora"), stream_base=streams, **settings)
        for streams in (False, True)
    ]
    resident, streamed = ({path.name: load_file(path) for path in run.glob("*.safetensors")} for run in runs)
    assert resident and resident.keys() == streamed.keys()
    for name, tensors in resident.items():
        assert all(torch.equal(tensor, streamed[name][key]) for key, tensor in tensors.items())


def alive_at_once(monkeypatch):
    """The numbers of blocks whose weights were there, as each of them came."""
    alive, counts = weakref.WeakSet(), []
    send = WeightStream._send

    def watched(self, block):
        coming = send(self, block)
        alive.add(coming.values.untyped_storage())
        counts.append(len(alive))
        return coming

    monkeypatch.setattr(WeightStream, "_send", watched)
    return counts


@pytest.mark.parametrize("recomputes", [False, True])
def test_weights_are_gone_between_uses_and_come_twice_a_step(tiny_base, monkeypatch, recomputes):
    counts = alive_at_once(monkeypatch)
    unet = unet_of(tiny_base, recomputes=recomputes)
    stream = stream_weights(unet, CPU)
    step(unet), counts.clear()
    before = stream.copies
    step(unet)
    without_backward = 2  # blocks before the first adapter
    assert stream.copies - before == 2 * len(stream.blocks) - without_backward
    print(counts)
    assert max(counts) <= AT_ONCE
    for block in blocks_of(unet):
        for *_, tensor in frozen_tensors(block):
            assert tensor.untyped_storage().nbytes() == tensor.element_size() and tensor.isnan().all()
    assert all(not parameter.isnan().any() for parameter in adapter_parameters(unet).values())
    block = blocks_of(unet)[0]
    block._forward_pre_hooks.clear()
    assert step(unet)[0].isnan().all(), "a weight that did not come is no number"


def test_the_count_is_what_is_on_the_device(tiny_base):
    """But for the gaps between weights."""
    unet = unet_of(tiny_base)
    counted, _ = base_bytes(unet, None, torch.float32, streams=True)
    blocks = blocks_of(unet)
    away = {id(tensor) for block in blocks for *_, tensor in frozen_tensors(block)}
    stays = sum(tensor.nbytes for *_, tensor in frozen_tensors(unet) if id(tensor) not in away)
    stream = stream_weights(unet, CPU)
    assert 0 <= stays + AT_ONCE * stream.size - counted <= 256 * AT_ONCE * 40
    assert len(blocks) > 10 and not [block for block in blocks for child in block.children() if blocks_of(child)]


def test_blocks_without_weights_and_models_without_blocks_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    assert stream_weights(model, CPU).blocks == []
    assert model(torch.ones(1, 2)).isfinite().all() and base_bytes(model.requires_grad_(False), None, torch.float32)


def test_a_streamed_run_learns_what_another_does_and_draws_its_samples(train, tmp_path):
    settings = {
        "max_train_steps": 2, "learning_rate": 1e-2, "gradient_checkpointing": True, "checkpointing_steps": 1,
        "validation_prompt": ("a cat",), "validation_inference_steps": 1, "num_validation_images": 1,
    }  # fmt: skip
    resident = train(output_dir=str(tmp_path / "resident"), **settings)
    streamed = train(output_dir=str(tmp_path / "streamed"), stream_base=True, **{**settings, "max_train_steps": 1})
    said = [event["text"] for event in read_events(streamed / "events.jsonl", "message")]
    assert [text for text in said if text.startswith("stream_base: the weights of ")]
    train(output_dir=str(tmp_path / "streamed"), stream_base=True, resume_from_checkpoint="latest", **settings)
    assert_equal_weights(weights_of(streamed, 2), weights_of(resident, 2))
    pictures = sorted((resident / "samples").glob("step-*.png"))
    assert pictures
    for picture in pictures:
        assert (streamed / "samples" / picture.name).read_bytes() == picture.read_bytes()


def test_what_does_not_go_with_streaming_is_said_before_anything_loads(train):
    with pytest.raises(ConfigError, match="stream_base does not go with compile"):
        train(stream_base=True, compile="on")
    with pytest.raises(ConfigError, match="cuda_graphs does not go with stream_base"):
        train(stream_base=True, cuda_graphs="on")
    with pytest.raises(ConfigError, match="init_lora_weights pissa changes the base: leave out stream_base"):
        train(stream_base=True, init_lora_weights="pissa")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [None, "nf4"])
def test_on_a_gpu_too_and_little_memory_is_taken(tiny_base, kind):
    gpu = torch.device("cuda")
    expected = step(unet_of(tiny_base, torch.bfloat16, kind, True).to(gpu), gpu)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    streamed = unet_of(tiny_base, torch.bfloat16, kind, True)
    stream = stream_weights(streamed, gpu)
    tensors = (*streamed.parameters(), *streamed.buffers())
    stays = sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
    for _ in range(3):
        results = step(streamed, gpu)
        assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
    del results
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < stays + (AT_ONCE + 1) * stream.size + 2**20
