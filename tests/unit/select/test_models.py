"""A LoRA file on the base at a strength: the base's weights plus so much of the file's change, whatever its kind."""

import pytest
import torch

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import CheckpointError
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.keys import canonical
from sdxl_lora.select.choice import Candidate
from sdxl_lora.select.models import Strength, give_adapter, read_adapters
from tests.helpers.adapters import COMPONENTS, kohya_file, largest_difference, outputs, tiny_with_lora


@torch.no_grad()
def changed_by_hand(adapters, strength):
    pipeline = tiny_sdxl()
    for component, own in adapters.items():
        for name, layer in getattr(pipeline, component).named_modules():
            if isinstance(layer, torch.nn.Linear) and (key := canonical(component, name)) in own:
                layer.weight += strength * delta(own[key], layer.weight).view_as(layer.weight)
    return pipeline


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_the_change_counts_in_proportion_to_the_strength(kind, tmp_path):
    file = kohya_file(tmp_path, tiny_with_lora(kind=kind, alpha=2)[1])
    adapters, found = read_adapters(Candidate(1, file, ""))
    assert found == kind and set(adapters) == set(COMPONENTS)
    pipeline = tiny_sdxl()
    models = {component: getattr(pipeline, component) for component in COMPONENTS}
    for component, model in models.items():
        give_adapter(model, component, adapters[component], kind)
    strength = Strength(models.values())
    plain = outputs(tiny_sdxl())
    for wanted in (0.5, 1.3, 0.0):
        strength.set(wanted)
        by_hand = outputs(changed_by_hand(adapters, wanted))
        assert largest_difference(outputs(pipeline), by_hand) < 1e-4
        assert (largest_difference(by_hand, plain) > 1e-2) == (wanted > 0)


def test_a_file_that_is_no_lora_or_does_not_fit_is_named(tmp_path):
    broken = tmp_path / "cat.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"cat.safetensors cannot be used"):
        read_adapters(Candidate(1, broken, ""))
    file = kohya_file(tmp_path, tiny_with_lora(components=("unet",))[1])
    adapters, kind = read_adapters(Candidate(1, file, ""))
    with pytest.raises(CheckpointError, match="do not fit its base any more"):
        give_adapter(tiny_sdxl().text_encoder, "text_encoder", adapters["unet"], kind)
