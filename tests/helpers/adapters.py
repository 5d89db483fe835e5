"""Helpers of the LoRA tests: trained-looking adapters on the tiny base, and outputs of its three models."""

import torch

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_layers, module_adapter

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def tiny_with_lora(rank=4, alpha=4, targets="attention", components=COMPONENTS, layers=2, **options):
    """Return (pipeline, its models by component) with a random, so trained-looking, adapter on each of `components`."""
    pipeline = tiny_sdxl(layers=layers)
    models = {component: getattr(pipeline, component).eval() for component in components}
    generator = torch.Generator().manual_seed(7)
    for model in models.values():
        for parameter in add_lora(model, rank, alpha, targets=targets, **options):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return pipeline, models


@torch.no_grad()
def outputs(pipeline):
    """Return the outputs of the UNet and both text encoders for fixed inputs, one tensor each."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    encoders = pipeline.text_encoder.config.hidden_size, pipeline.text_encoder_2.config.hidden_size
    conditions = {"text_embeds": randn(2, encoders[1]), "time_ids": randn(2, 6)}
    latents, timesteps, text = randn(2, 4, 8, 8), torch.tensor([5, 700]), randn(2, 7, sum(encoders))
    tokens = torch.arange(3, 13)[None]
    for component in COMPONENTS:
        getattr(pipeline, component).eval()
    return [
        pipeline.unet(latents, timesteps, text, added_cond_kwargs=conditions).sample,
        pipeline.text_encoder(tokens, output_hidden_states=True).hidden_states[-2],
        pipeline.text_encoder_2(tokens).text_embeds,
    ]


def largest_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def model_adapters(model, component):
    return {name: module_adapter(layer) for name, layer in adapter_layers(model, component).items()}


def kohya_file(folder, models):
    return write_lora_files(folder, "kohya", models, "fp32")[0]
