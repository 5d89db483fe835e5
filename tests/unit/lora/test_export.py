"""The two LoRA files: diffusers loads both at the trained strength; each is proven before it counts."""

import io
import json
import logging

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import DiskError, NonFiniteError
from sdxl_lora.lora.export import copy_lora, thumbnail_jpeg, write_lora_files, write_side_files
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.keys import TARGETS
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.inject import add_lora
from tests.helpers.adapters import COMPONENTS, largest_difference, model_adapters, outputs, tiny_with_lora
from tests.helpers.marks import slow


@pytest.fixture(scope="module")
def base():
    pipeline = tiny_sdxl()
    return pipeline, outputs(pipeline)


@pytest.mark.parametrize(
    ("targets", "alpha", "options"),
    [
        *slow(*((targets, 6, {}) for targets in TARGETS)),
        *slow(("attention", 4, {})),
        ("attention", 8, {"components": ("unet",)}),
        *slow(("all-linear+conv", 3, {"use_rslora": True})),
        (
            "all-linear+conv",
            3,
            {"rank_pattern": {"to_q": 7, "fc1": 5}, "alpha_pattern": {"to_k": 9, "conv1": 2, "fc2": 1}},
        ),
        ("attn1.to_q|fc1|layers.0.self_attn.q_proj", 1, {}),  # diffusers raises for such text encoders unless filled up
    ],
)
def test_diffusers_gives_the_trained_outputs_half_of_them_and_the_bases_again(tmp_path, base, targets, alpha, options):
    pipeline, untrained = base
    trained, models = tiny_with_lora(4, alpha, targets, **options)
    expected = outputs(trained)
    changed = [largest_difference([a], [b]) > 1e-3 for a, b in zip(expected, untrained, strict=True)]
    assert sum(changed) == len(models)
    for scaling in _adapter_scalings(models):
        scaling["default"] *= 0.5
    half = outputs(trained)
    for scaling in _adapter_scalings(models):
        scaling["default"] *= 2

    for path in write_lora_files(tmp_path, "cat", models, "fp32"):
        pipeline.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="cat")
        assert largest_difference(outputs(pipeline), expected) < 1e-5
        pipeline.set_adapters("cat", 0.5)
        assert largest_difference(outputs(pipeline), half) < 1e-5
        pipeline.unload_lora_weights()
        assert largest_difference(outputs(pipeline), untrained) == 0


def _adapter_scalings(models):
    return [m.scaling for model in models.values() for m in model.modules() if hasattr(m, "lora_A")]


def test_the_first_file_is_kohyas_container_with_true_alpha_and_one_rank(tmp_path):
    _, models = tiny_with_lora(4, 2, rank_pattern={"to_q": 7, "q_proj": 5})
    kohya, _ = write_lora_files(tmp_path, "cat", models)
    tensors = load_file(kohya)
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert tensors[f"{stem}.lora_down.weight"].shape[0] == tensors[f"{stem}.lora_up.weight"].shape[1] == 7
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha" in tensors
    for component in ("unet", "te1", "te2"):
        ours = {name: t for name, t in tensors.items() if name.startswith(f"lora_{component}_")}
        assert len({t.item() for name, t in ours.items() if name.endswith(".alpha")}) == 1
        assert len({t.shape[0] for name, t in ours.items() if name.endswith("lora_down.weight")}) == 1
    assert {t.dtype for name, t in tensors.items() if not name.endswith(".alpha")} == {torch.float16}


def test_the_second_file_has_no_alpha_anywhere(tmp_path):
    _, models = tiny_with_lora(4, 2)
    _, diffusers = write_lora_files(tmp_path, "cat", models, "bf16", lora_metadata("cat"))
    with safe_open(diffusers, "pt") as file:
        assert "alpha" not in str(file.metadata()).lower()
        assert {key.rsplit(".", 2)[1] for key in file.keys()} == {"lora_A", "lora_B"}  # noqa: SIM118
        assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in file.keys()  # noqa: SIM118


def test_half_precision_keeps_outputs_close(tmp_path, base):
    pipeline, _ = base
    trained, models = tiny_with_lora(4, 1)
    for path in write_lora_files(tmp_path, "cat", models):
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        assert largest_difference(outputs(pipeline), outputs(trained)) < 1e-3
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("options", [{"use_dora": True}, *slow({"kind": "loha"}, {"kind": "lokr"})], ids=str)
def test_dora_loha_and_lokr_are_also_saved_as_the_lora_that_other_clients_need(tmp_path, base, caplog, options):
    pipeline, _ = base
    trained, models = tiny_with_lora(2, 3, "all-linear+conv", **options)
    expected = outputs(trained)
    kohya, diffusers = write_lora_files(tmp_path, "cat", models, "fp32", merged_rank=512)
    loaded = [kohya, diffusers] if "use_dora" in options else [diffusers]
    for path in loaded:
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        assert largest_difference(outputs(pipeline), expected) < 1e-4
        pipeline.unload_lora_weights()
    if "kind" in options:  # the other file holds the adapter itself, under LyCORIS' names
        own = {
            (component, name): adapter
            for component, model in models.items()
            for name, adapter in model_adapters(model, component).items()
        }
        read = read_lora(kohya).adapters
        assert all(torch.allclose(delta(read[key]), delta(adapter), atol=1e-6) for key, adapter in own.items())
        with safe_open(kohya, "pt") as file:
            assert file.metadata()["ss_network_module"] == "lycoris.kohya"
    assert not caplog.text
    write_lora_files(tmp_path, "cat", models, "fp32", merged_rank=2)
    assert "of rank 2 the weakest layer keeps" in caplog.text


def test_diffusers_gets_a_lora_where_it_does_not_recognise_the_dora(tmp_path, base):
    pipeline, _ = base
    trained, models = tiny_with_lora(2, 3, "to_q|fc1", use_dora=True)
    for path in write_lora_files(tmp_path, "cat", models, "fp32", merged_rank=512):
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        assert largest_difference(outputs(pipeline), outputs(trained)) < 1e-4
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("factor", [1e-7, 1e-4, 1e7])
def test_values_that_fp16_cannot_hold_are_saved_as_fp32_with_a_warning(tmp_path, caplog, factor):
    _, models = tiny_with_lora(4, 4, components=("unet",))
    for name, parameter in models["unet"].named_parameters():
        if "lora_B" in name:
            parameter.data *= factor
    with caplog.at_level(logging.WARNING):
        paths = write_lora_files(tmp_path, "cat", models)
    assert "saved as fp32, not fp16" in caplog.text
    assert {t.dtype for path in paths for t in load_file(path).values()} == {torch.float32}


def test_a_fresh_adapter_of_zeros_is_saved_in_fp16(tmp_path, caplog):
    unet = tiny_sdxl().unet
    add_lora(unet, 4, 4)
    write_lora_files(tmp_path, "cat", {"unet": unet})
    assert not caplog.text


def test_bad_weights_bad_names_and_full_disks_leave_the_older_files(tmp_path, monkeypatch):
    _, models = tiny_with_lora(components=("unet",))
    paths = write_lora_files(tmp_path, "cat", models)
    before = [path.read_bytes() for path in paths]
    for name in ("../cat", "/cat", "a/b", "", "c\0t", "-cat", "c" * 65, "pytorch_lora_weights"):
        with pytest.raises(ValueError, match="output name"):
            write_lora_files(tmp_path, name, models)
    with pytest.raises(ValueError, match="must be one of fp16, bf16, fp32"):
        write_lora_files(tmp_path, "cat", models, "int4")
    with pytest.raises(ValueError, match="must be strings: ss_steps"):
        write_lora_files(tmp_path, "cat", models, metadata={"ss_steps": 3})

    weight = next(p for name, p in models["unet"].named_parameters() if "lora_A" in name)
    old = weight.data.clone()
    weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"cat.safetensors was not written: lora_unet_.* holds NaN"):
        write_lora_files(tmp_path, "cat", models)
    weight.data = old

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"cat.safetensors: No space left on device; it needs \d+ bytes, \d+ are free"):
        write_lora_files(tmp_path, "cat", models)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_a_file_that_reads_back_differently_does_not_count(tmp_path, monkeypatch):
    from sdxl_lora.io.safetensors import TensorFile

    _, models = tiny_with_lora(components=("unet",))
    monkeypatch.setattr(TensorFile, "read", lambda self, name: torch.zeros(self.shapes[name], dtype=self.dtypes[name]))
    with pytest.raises(DiskError, match="did not read back as written"):
        write_lora_files(tmp_path, "cat", models)
    assert not list(tmp_path.iterdir())


def test_components_are_written_only_where_they_train(tmp_path):
    for components in (("unet",), ("text_encoder",), COMPONENTS):
        _, models = tiny_with_lora(components=components)
        _, diffusers = write_lora_files(tmp_path, "cat", models)
        assert {key.split(".")[0] for key in load_file(diffusers)} == set(components)


def test_side_files_stand_beside_the_lora(tmp_path):
    lora = tmp_path / "cat.safetensors"
    png = b"\x89PNG\r\n\x1a\nrest"
    paths = write_side_files(lora, "sks", "A tabby.", png)
    assert paths == [tmp_path / "cat.json", tmp_path / "cat.png"]
    about = json.loads(paths[0].read_text(encoding="utf-8"))
    assert (about["activation text"], about["description"], about["sd version"]) == ("sks", "A tabby.", "SDXL")
    assert paths[1].read_bytes() == png
    with pytest.raises(ValueError, match="must be a PNG"):
        write_side_files(lora, "sks", thumbnail_png=b"\xff\xd8")


def test_a_thumbnail_is_a_small_jpeg_without_exif():
    image = Image.new("RGBA", (640, 320), "red")
    jpeg = thumbnail_jpeg(image)
    small = Image.open(io.BytesIO(jpeg))
    assert (small.format, small.size, len(small.getexif())) == ("JPEG", (256, 128), 0)
    assert lora_metadata("cat", thumbnail_jpeg=jpeg)["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


def test_a_copy_for_a_client_is_the_same_bytes(tmp_path):
    _, models = tiny_with_lora(components=("unet",))
    kohya, _ = write_lora_files(tmp_path / "run", "cat", models, metadata=lora_metadata("cat"))
    (tmp_path / "loras").mkdir()
    assert copy_lora(kohya, tmp_path / "loras").read_bytes() == kohya.read_bytes()
    with pytest.raises(ValueError, match="is not a folder: make it first"):
        copy_lora(kohya, tmp_path / "none")
