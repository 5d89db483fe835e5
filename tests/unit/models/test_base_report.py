"""What a base is, by headers and configs: bases as they are shared, and what is said of each before any work."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from examples.full_sdxl import full_sdxl
from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.models.base_report import look_at
from sdxl_lora.models.base_weights import BaseWeights
from sdxl_lora.models.loading import Base, check_base, load_schedulers, load_text_encoders, load_unet, load_vae
from sdxl_lora.models.original_names import places, sgm_tensor
from sdxl_lora.tools.__main__ import main
from tests.helpers.adapters import tiny_with_lora
from tests.helpers.original_layout import write_original_layout
from tests.helpers.paths import ROOT

UNET = "model.diffusion_model."
FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def original(tiny_base, tmp_path_factory):
    """The tensors of the tiny base by their original names."""
    path = tmp_path_factory.mktemp("original") / "tiny.safetensors"
    write_original_layout(StableDiffusionXLPipeline.from_pretrained(tiny_base), path)
    return load_file(path)


@pytest.fixture
def base_of(tiny_base, tmp_path):
    """A function from tensors to a Base of one file with them."""

    def make(tensors, name="model.safetensors", metadata=None, **more):
        save_file(tensors, tmp_path / name, metadata)
        return Base(str(tmp_path / name), config_path=str(tiny_base), **more)

    return make


@pytest.fixture
def folder(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "folder")


def set_config(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def one_line(base):
    """What check_base refuses the base with."""
    with pytest.raises(ConfigError) as raised:
        check_base(base)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def notes_of(base):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_base(base)
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


def test_a_whole_base_has_nothing_missing_unknown_or_odd(original, base_of, tiny_base):
    for base in (base_of(original), Base(str(tiny_base))):
        report = look_at(base)
        assert (report.kind, report.prediction, report.channels) == ("an SDXL base", "epsilon", 4)
        assert (report.unknown, report.refusal, report.notes) == ([], None, [])
        assert report.vae["scaling_factor"] == 0.13025 and set(report.parts["unet"].dtypes) == {torch.float32}
        assert all(part.fit.missing == [] for part in report.parts.values())


@pytest.mark.parametrize(
    "scheduler, settings, found",
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), {}, "was trained by a flow"),
        (EDMEulerScheduler(), {}, "was trained by EDM"),
        (None, {"_class_name": "EDMDPMSolverMultistepScheduler"}, "was trained by EDM"),
        (None, {"timestep_type": "continuous", "prediction_type": "v_prediction"}, "was trained by EDM"),
        (None, {"prediction_type": "flow_prediction"}, "was trained by a flow"),
        (None, {"use_flow_sigmas": True}, "was trained by a flow"),
        (None, {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_bases_of_another_objective_are_refused_whatever_the_settings_say(folder, scheduler, settings, found):
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
    set_config(folder / "scheduler" / "scheduler_config.json", **settings)
    assert f"{folder} {found}, which is not supported yet" in one_line(Base(str(folder)))
    for prediction_type in (None, "epsilon", "v_prediction"):
        with pytest.raises(ConfigError, match="not supported yet"):
            load_schedulers(Base(str(folder)), prediction_type)


def test_a_scheduler_without_betas_is_not_taken_for_ddpms_own(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "CMStochasticIterativeScheduler"}')
    assert "has CMStochasticIterativeScheduler, which has no betas" in one_line(Base(str(folder)))


@pytest.mark.parametrize(
    "marks, metadata, found",
    [
        (["edm_mean", "edm_std"], None, "was trained by EDM"),  # Playground 2.5
        (["edm_vpred.sigma_max", "edm_vpred.sigma_min"], None, "was trained by EDM"),  # CosXL
        ([], {"modelspec.prediction_type": "rf"}, "was trained by a flow"),
    ],
)
def test_single_files_of_another_objective_say_so_by_their_marks(original, base_of, marks, metadata, found):
    base = base_of(original | {mark: torch.zeros(1) for mark in marks}, metadata=metadata)
    assert found in one_line(base)


def test_a_file_that_says_v_by_its_metadata_is_trained_so_and_that_is_said(original, base_of):
    base = base_of(original, metadata={"modelspec.prediction_type": "v"})
    assert "metadata modelspec.prediction_type that it predicts v" in notes_of(base)[0]
    assert load_schedulers(base)[0].config.prediction_type == "v_prediction"
    base = base_of(original, metadata={"modelspec.prediction_type": "epsilon"})
    assert notes_of(base) == [] and load_schedulers(base)[0].config.prediction_type == "epsilon"


def test_missing_weights_of_a_file_are_named_in_one_line_and_unknown_ones_too(original, base_of):
    lacking = [
        FIRST_CONVOLUTION,
        UNET + "out.0.bias",
        "conditioner.embedders.1.model.text_projection",
        "first_stage_model.quant_conv.weight",
    ]
    base = base_of({name: tensor for name, tensor in original.items() if name not in lacking})
    words = one_line(base)
    assert all(name in words for name in lacking)
    with pytest.raises(ConfigError, match="input_blocks"):
        load_unet(base, torch.float32)

    base = base_of(original | {UNET + "another.weight": torch.zeros(2), "more": torch.zeros(1)})
    [note] = notes_of(base)
    assert "2 weights that are not used" in note and UNET + "another.weight" in note and "more" in note


def test_missing_weights_of_a_folder_are_not_made_up(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, path)
    assert "lacks weights, 1 of unet: mid_block.resnets.0.conv1.weight" in one_line(Base(str(folder)))
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert "it lacks scheduler/scheduler_config.json" in one_line(Base(str(folder)))


def test_averages_position_ids_marks_and_schedules_are_known_as_harmless(original, base_of):
    more = {
        "model_ema.diffusion_modelout2weight": torch.zeros(3),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "conditioner.embedders.1.model.attn_mask": torch.zeros(1),
        "denoiser.sigmas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "global_step": torch.zeros(1),
    }
    base = base_of(original | more)
    scale_of_clip = "conditioner.embedders.1.model.logit_scale"
    assert notes_of(base) == [] and look_at(base).harmless == len(more) + (scale_of_clip in original)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_counts_at_its_scale(original, base_of, tiny_base, scale, rows):
    """As ComfyUI's files have it: one scale for each layer, or one for each row; the encoders' layers too."""
    packed, meant = {}, {}
    for name, tensor in original.items():
        if not (name.endswith(".weight") and tensor.dim() == 2 and not name.startswith("first_stage_model")):
            packed[name] = meant[name] = tensor
            continue
        factor = (tensor.abs().amax(1) if rows else tensor.abs().amax()) / 448
        packed[name] = (tensor / (factor[:, None] if rows else factor)).to(torch.float8_e4m3fn)
        packed[name.removesuffix("weight") + scale] = factor
        meant[name] = packed[name].float() * (factor[:, None] if rows else factor)
    packed[UNET + "scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    base = base_of(packed)
    report = look_at(base)
    assert (report.refusal, report.unknown) == (None, []) and report.parts["unet"].scaled > 10

    plain = Base(str(base.path).replace("model.", "plain."), config_path=str(tiny_base))
    save_file(meant, plain.path)
    for ours, theirs in [
        (load_unet(base, torch.float32), load_unet(plain, torch.float32)),
        *zip(load_text_encoders(base, torch.float32), load_text_encoders(plain, torch.float32), strict=True),
    ]:
        theirs = theirs.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_the_tools_read_scaled_fp8_at_its_scale_and_merge_nothing_into_it(original, base_of, tmp_path, capsys):
    layer = UNET + "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    scale = original[f"{layer}.weight"].abs().amax() / 448
    packed = (original[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)
    base = base_of(original | {f"{layer}.weight": packed, f"{layer}.scale_weight": scale})
    key = ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    with BaseWeights(base.path) as weights:
        assert torch.equal(weights.weight(key), packed.float() * scale)
    lora, _ = write_lora_files(tmp_path, "cat", tiny_with_lora(rank=2, alpha=2)[1], "fp32", lora_metadata("cat"))
    assert main(["merge", str(lora), base.path, str(tmp_path / "merged.safetensors")]) == 2
    assert "holds scaled fp8, 1 weights such as" in capsys.readouterr().err


def test_plain_fp8_half_and_capital_letters_load(original, base_of, tiny_base):
    unet = load_unet(Base(str(tiny_base)), torch.float32).state_dict()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16):
        base = base_of({name: tensor.to(dtype) for name, tensor in original.items()}, "UPPER.SAFETENSORS")
        assert notes_of(base) == []
        ours = load_unet(base, torch.float32).state_dict()
        assert all(torch.equal(ours[name], tensor.to(dtype).float()) for name, tensor in unet.items())


@pytest.mark.parametrize("layout", ["original", "original in a checkpoint", "diffusers", "diffusers before 2023"])
def test_a_vae_comes_from_one_file_and_completes_a_checkpoint(original, base_of, tiny_base, tmp_path, layout):
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae")
    with torch.no_grad():
        vae.decoder.conv_in.weight.add_(1)
    tensors = dict(vae.state_dict())
    if layout.startswith("original"):
        prefix = "first_stage_model."
        tensors = {name: tensor for name, tensor in original.items() if name.startswith(prefix)}
        tensors[prefix + "decoder.conv_in.weight"] = tensors[prefix + "decoder.conv_in.weight"] + 1
        if layout == "original":
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        else:
            tensors |= {UNET + "out.2.bias": torch.zeros(4)}
    elif layout == "diffusers before 2023":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [name for name in tensors if "attentions.0.to_" in name]:
            before, after = name.split("attentions.0.")
            module, kind = after.rsplit(".", 1)
            tensors[f"{before}attentions.0.{old[module]}.{kind}"] = tensors.pop(name)
    save_file(tensors, tmp_path / "vae.safetensors")
    without = {name: tensor for name, tensor in original.items() if not name.startswith("first_stage_model.")}
    assert "without its VAE: give one by --pretrained_vae_model_name_or_path" in one_line(base_of(without))
    path = str(tmp_path / "vae.safetensors")
    for base in (base_of(without, vae_path=path), base_of(original, vae_path=path), Base(str(tiny_base), path)):
        assert notes_of(base) == []
        theirs = vae.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in load_vae(base).state_dict().items())


@pytest.mark.parametrize("channels, kind", [(9, "inpainting"), (8, "pix2pix"), (5, "another kind")])
def test_unets_of_other_tasks_are_refused_for_what_they_are(original, base_of, folder, channels, kind):
    wide = torch.zeros(16, channels, 3, 3)
    assert kind in one_line(base_of(original | {FIRST_CONVOLUTION: wide}))
    set_config(folder / "unet" / "config.json", in_channels=channels)
    assert kind in one_line(Base(str(folder)))


def test_a_smaller_unet_is_pointed_to_its_own_configs(original, base_of):
    small = {name: tensor for name, tensor in original.items() if "transformer_blocks" not in name}
    assert "SSD-1B" in one_line(base_of(small)) and "--pretrained_config_name_or_path" in one_line(base_of(small))


@pytest.mark.parametrize("mid_block_type", ["UNetMidBlock2D", None])
def test_a_smaller_unet_with_configs_of_its_own_is_a_base(folder, tmp_path, mid_block_type):
    """As SSD-1B's and Vega's: other numbers of transformers in each place, less in the middle or nothing."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    few = {"transformer_layers_per_block": [1, [1, 1], [2, 1]], "mid_block_type": mid_block_type}
    few["reverse_transformer_layers_per_block"] = [[1, 1, 2], [1, 1, 1], 1]
    unet = UNet2DConditionModel.from_config(config | few)
    unet.save_pretrained(folder / "unet")
    assert notes_of(Base(str(folder))) == []
    ours, theirs = load_unet(Base(str(folder)), torch.float32).state_dict(), unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_of_another_size_and_foreign_configs_are_named(original, base_of, folder):
    base = base_of(original | {UNET + "time_embed.0.weight": torch.zeros(32, 64)})
    assert "does not fit the configs" in one_line(base) and "time_embed.0.weight is [32, 64]" in one_line(base)
    set_config(folder / "unet" / "config.json", cross_attention_dim=768, addition_embed_type=None)
    assert "is no SDXL base" in one_line(Base(str(folder)))


def test_a_vae_of_another_kind_is_named(folder, tmp_path):
    AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path / "tiny")
    assert "has AutoencoderTiny for its vae" in one_line(Base(str(folder), vae_path=str(tmp_path / "tiny")))
    (tmp_path / "wide").mkdir()
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "wide")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    assert "has a VAE of 16 channels, the UNet takes 4" in one_line(Base(str(folder), vae_path=str(tmp_path / "wide")))


def test_what_is_no_safetensors_is_refused_unopened(folder, tmp_path):
    for name in ("model.gguf", "model.CKPT", "model.pt"):
        (tmp_path / name).write_bytes(b"GGUF")
        assert "is not a .safetensors file" in one_line(Base(str(tmp_path / name)))
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "not a readable .safetensors" in one_line(Base(str(tmp_path / "pointer.safetensors")))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "cut short" in one_line(Base(str(folder)))


def test_a_folder_that_is_no_base_is_named_for_what_it_is(tiny_base, tmp_path):
    (tmp_path / "files").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "files" / "model.safetensors")
    assert "a folder of single files" in one_line(Base(str(tmp_path / "files")))
    assert "one part of a base" in one_line(Base(str(tiny_base / "unet")))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "a LoRA's folder" in one_line(Base(str(tmp_path / "lora")))
    for path in ("/no/such/folder", "./no such/base", "C:\\models\\base"):
        assert "no such base model here" in one_line(Base(path))


def test_shards_and_variants_are_read_like_one_file(folder, tmp_path):
    whole = load_unet(Base(str(folder)), torch.float32).state_dict()
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.unet.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="100KB")
    shutil.copy(folder / "unet" / "config.json", tmp_path / "sharded" / "unet")
    for other in folder.iterdir():
        if other.name != "unet":
            copy = shutil.copytree if other.is_dir() else shutil.copy
            copy(other, tmp_path / "sharded" / other.name)
    assert len(list((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))) > 2
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")

    fp16 = str(tmp_path / "fp16")
    [note] = notes_of(Base(fp16))
    assert note == f"{fp16} has weights of variant fp16 alone: they are taken"
    for base in (Base(str(tmp_path / "sharded")), Base(fp16, variant="fp16"), Base(fp16)):
        assert base == Base(fp16) or notes_of(base) == []
        ours = load_unet(base, torch.float32).state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())
    with pytest.raises(ConfigError, match=r"holds no \.safetensors weights of unet, text_encoder, text_encoder_2, vae"):
        check_base(Base(str(folder), variant="fp16"))
    with pytest.raises(ConfigError, match=r"no \.safetensors weights of variant fp16"):
        load_unet(Base(str(folder), variant="fp16"), torch.float32)


def test_a_hub_id_is_looked_at_and_loaded_from_the_hubs_cache(folder, tmp_path):
    cache = tmp_path / "hub" / "models--someone--base"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("1" * 40))
    script = """
import torch
from sdxl_lora.models.loading import Base, check_base, load_unet
base, whole = Base("someone/base"), Base({folder})
print("\\n".join(check_base(base).lines()))
theirs = load_unet(whole, torch.float32).state_dict()
print(all(torch.equal(t, theirs[name]) for name, t in load_unet(base, torch.float32).state_dict().items()))
""".replace("{folder}", repr(str(folder)))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "an SDXL base, on the Hub" in done.stdout and "values; F32 in" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "True", done.stderr


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


def test_show_says_what_a_base_is(original, base_of, tiny_base, capsys):
    base = base_of(original | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    assert main(["show", base.path, "--configs", str(tiny_base)]) == 0
    shown = capsys.readouterr().out
    assert "an SDXL base, one file in the original layout" in shown
    assert "v_prediction, zero terminal SNR (tensor v_pred and ztsnr)" in shown
    assert "scaling_factor 0.13025" in shown and "F32 in" in shown and "training       yes" in shown
    assert main(["show", str(tiny_base)]) == 0
    assert "diffusers folder" in capsys.readouterr().out
    save_file({"cond_stage_model.x": torch.zeros(1)}, base.path)
    assert main(["show", base.path]) == 0
    assert "training       no: " in capsys.readouterr().out
