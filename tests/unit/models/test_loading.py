"""A base from a folder, from one file, without a connection; and what is not an SDXL base."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors.torch import save_file

from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import Base, check_base, load_schedulers, load_text_parts, load_unet, load_vae
from tests.helpers.bases import notes_of
from tests.helpers.original_layout import write_original_layout


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    return StableDiffusionXLPipeline.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def single_file(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write_original_layout(pipeline, path)
    return path


def assert_same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("source", ["folder", "single file"])
def test_every_part_has_the_bases_weights(tiny_base, single_file, pipeline, source):
    base = Base(str(tiny_base)) if source == "folder" else Base(str(single_file), config_path=str(tiny_base))
    check_base(base)
    assert_same_weights(load_vae(base), pipeline.vae)
    assert_same_weights(load_unet(base, torch.float32), pipeline.unet)
    tokenizers, encoders = load_text_parts(base, torch.float32)
    assert_same_weights(encoders[0], pipeline.text_encoder)
    assert_same_weights(encoders[1], pipeline.text_encoder_2)
    assert tokenizers[1].pad_token == "!" and tokenizers[0]("a cat").input_ids == pipeline.tokenizer("a cat").input_ids


def test_parts_come_frozen_in_the_asked_precision_and_the_vae_in_float32(tiny_base):
    base = Base(str(tiny_base))
    unet, (_, encoders) = load_unet(base, torch.bfloat16), load_text_parts(base, torch.bfloat16)
    assert {unet.dtype, *(encoder.dtype for encoder in encoders)} == {torch.bfloat16}
    assert load_vae(base).dtype == torch.float32
    assert not any(p.requires_grad for model in (unet, *encoders, load_vae(base)) for p in model.parameters())


def test_another_vae_takes_the_place_of_the_bases(tiny_base, tmp_path, pipeline):
    other = load_vae(Base(str(tiny_base)))
    with torch.no_grad():
        other.encoder.conv_in.weight.add_(1)
    other.save_pretrained(tmp_path / "vae")
    for path in (tmp_path, tmp_path / "vae"):  # a base's folder, or the VAE's own
        assert_same_weights(load_vae(Base(str(tiny_base), vae_path=str(path))), other)


def test_a_file_says_by_a_tensor_that_it_predicts_v(pipeline, tiny_base, tmp_path):
    path = tmp_path / "v.safetensors"
    write_original_layout(pipeline, path, extra=["v_pred", "ztsnr"])
    schedule, _ = load_schedulers(Base(str(path), config_path=str(tiny_base)))
    assert schedule.config.prediction_type == "v_prediction" and schedule.config.rescale_betas_zero_snr
    assert schedule.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize(
    "names, found",
    [
        (["cond_stage_model.transformer.x", "model.diffusion_model.x"], "a Stable Diffusion 1.x checkpoint"),
        (["lora_unet_x.lora_down.weight"], "a LoRA"),
        (["unet.x.lora_A.weight"], "a LoRA"),
        (["conditioner.embedders.0.model.x", "model.diffusion_model.x"], "the SDXL refiner"),
        (["double_blocks.0.x"], "a Flux checkpoint"),
        (["model.diffusion_model.joint_blocks.0.x"], "a Stable Diffusion 3 checkpoint"),
        (["cond_stage_model.model.x", "model.diffusion_model.x"], "a Stable Diffusion 2.x checkpoint"),
        (["control_model.x"], "a ControlNet"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE alone"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a UNet without its text encoders"),
        (["emb_params"], "a textual inversion"),
        (["anything"], "something else"),
        (["model.diffusion_model.x", "conditioner.embedders.1.model.x"], "without its VAE"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, names, found):
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1) for name in names}, path)
    with pytest.raises(ConfigError, match=found):
        check_base(Base(str(path)))


def test_pickles_and_rubbish_are_refused_unopened(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ConfigError, match="pickles"):
        check_base(Base(str(tmp_path / "model.ckpt")))
    with pytest.raises(ConfigError, match="not a readable"):
        check_base(Base(str(tmp_path / "model.safetensors")))
    with pytest.raises(ConfigError, match="no such base model"):
        check_base(Base(str(tmp_path / "nothing.safetensors")))


def test_folders_of_other_pipelines_are_refused(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    index = tmp_path / "base" / "model_index.json"
    original = json.loads(index.read_text())
    index.write_text(json.dumps({**original, "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ConfigError, match="is a StableDiffusionPipeline"):
        check_base(Base(str(tmp_path / "base")))
    index.write_text(json.dumps({**original, "text_encoder": [None, None]}))
    with pytest.raises(ConfigError, match="refiner"):
        check_base(Base(str(tmp_path / "base")))


def test_without_a_connection_a_hub_id_is_named_with_the_way_out():
    with pytest.raises(ConfigError, match=r"stabilityai/nothing(.|\n)*give local paths"):
        check_base(Base("stabilityai/nothing"))


@pytest.mark.parametrize(
    "config, shift",
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5, "num_train_timesteps": 1000}, 2.5),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 4.0}, 4.0),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, 3.0),
    ],
)
def test_a_folder_says_by_its_scheduler_that_it_predicts_a_flow(folder, config, shift):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    base = Base(str(folder))
    report = check_base(base)
    assert (report.prediction, report.told_by, report.refusal) == ("flow", "the scheduler's config", None)
    schedule, sampler = load_schedulers(base)
    assert (schedule.config.prediction_type, schedule.config.shift, sampler.config.shift) == ("flow", shift, shift)
    assert load_schedulers(base, ObjectiveConfig(flow_shift=1.5))[0].config.shift == 1.5
    with pytest.raises(ConfigError, match="no betas to train epsilon with: leave out --prediction_type"):
        load_schedulers(base, ObjectiveConfig("epsilon"))


def test_a_file_predicts_a_flow_by_its_metadata_or_the_setting(original, base_of):
    base = base_of(original, metadata={"modelspec.prediction_type": "rf"})
    assert "metadata modelspec.prediction_type what it predicts: flow" in notes_of(base)[0]
    for told, objective in (
        (base, ObjectiveConfig()),
        (base_of(original, "silent.safetensors"), ObjectiveConfig("flow")),
    ):
        schedule, sampler = load_schedulers(told, objective)
        assert (schedule.config.prediction_type, schedule.config.shift, sampler.config.shift) == ("flow", 3.0, 3.0)


def test_a_shift_that_no_flow_takes_or_that_follows_the_size_is_refused(folder, tiny_base):
    with pytest.raises(ConfigError, match=r"flow_shift is for bases that predict a flow, .* predicts epsilon"):
        load_schedulers(Base(str(tiny_base)), ObjectiveConfig(flow_shift=3.0))
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    with pytest.raises(ConfigError, match=r"use_dynamic_shifting.*--flow_shift"):
        load_schedulers(Base(str(folder)))
    assert load_schedulers(Base(str(folder)), ObjectiveConfig(flow_shift=2.0))[0].config.shift == 2
