"""Names of weights in the original layout."""

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from examples.full_sdxl import full_sdxl
from sdxl_lora.models.original_names import places, sgm_tensor
from tests.helpers.bases import UNET


def test_full_sized_names_are_those_that_diffusers_converts_to():
    """Both ways of naming meet for every tensor of SDXL's UNet."""
    unet = full_sdxl()["unet"]
    ours = {sgm_tensor(name): tensor for name, tensor in unet.state_dict().items()}
    assert None not in ours
    theirs = convert_ldm_unet_checkpoint({UNET + name: tensor for name, tensor in ours.items()}, unet.config)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == {
        name: tuple(t.shape) for name, t in unet.state_dict().items()
    }
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    names = {places("vae", name, 4)[-1].name: tensor for name, tensor in vae.state_dict().items()}
    theirs = convert_ldm_vae_checkpoint({f"first_stage_model.{name}": t for name, t in names.items()}, vae.config)
    assert theirs.keys() == vae.state_dict().keys()
