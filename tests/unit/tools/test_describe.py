"""`show` and `check`: what a file holds, which clients read it, and what is wrong with it."""

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tools import changes, run


def test_show_tells_ranks_strengths_norms_clients_and_metadata(loras, capsys):
    _, kohya, diffusers = loras["dog"]
    assert run("show", kohya) == 0
    page = capsys.readouterr().out
    count = sum(component == "unet" for component, _ in changes(kohya))
    assert f"unet: {count} modules, rank 3, alpha 5, strength 1.66667" in page
    norm = sum(c.square().sum() for (part, name), c in changes(kohya).items() if name.startswith("mid_block")).sqrt()
    assert f"norm of the change {norm:.4g}" in page.split("mid_block")[1].split("\n")[0]
    assert all(f"{client}: loads" in page for client in ("diffusers", "ComfyUI", "A1111", "Forge", "InvokeAI"))
    assert "modelspec.trigger_phrase: sks dog" in page
    assert "keys such as lora_" in page and "self_attn.q_proj  rank" not in page
    run("show", kohya, "--keys")
    key = ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
    line = f"{key[1]}  rank 3  alpha 5  norm {changes(kohya)[key].norm():.4g}"
    assert line in capsys.readouterr().out
    run("show", diffusers)
    assert "ComfyUI: not sure: convert --to kohya" in capsys.readouterr().out
    run("show", loras["loha"][1])
    assert "diffusers: no: convert --to diffusers --rank N" in capsys.readouterr().out
    run("show", loras["dora"][2])
    assert "A1111: no: convert --to kohya --base" in capsys.readouterr().out


def test_show_names_the_files_that_fail_silently(loras, tmp_path, capsys):
    good = load_file(loras["dog"][1])
    path = tmp_path / "bad.safetensors"

    def verdict(tensors, metadata):
        save_file(tensors, path, metadata)
        run("show", path)
        return capsys.readouterr().out

    sdxl = {"ss_base_model_version": "sdxl_base_v1-0"}
    assert "A1111: hides it" in verdict(good, {})
    key = next(key for key in good if key.endswith("to_q.alpha"))
    assert "wrong strength (several ranks or alphas in unet)" in verdict({**good, key: torch.tensor(1.0)}, sdxl)
    only_q = {key: t for key, t in good.items() if "te1" not in key or "q_proj" in key}
    assert "raises (text_encoder without all of q, k, v, out)" in verdict(only_q, sdxl)
    unprefixed = {key.replace("te1_text_model_", "te1_"): t for key, t in good.items()}
    assert "drops the text encoders" in verdict(unprefixed, sdxl)
    assert "raises (lora_adapter_metadata in the header)" in verdict(good, {**sdxl, "lora_adapter_metadata": "{}"})


def test_check_finds_what_is_not_finite_zero_or_far_out_of_line(loras, tmp_path, capsys):
    assert run("check", loras["dog"][1]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    tensors = load_file(loras["dog"][1])
    ups = [key for key in tensors if key.startswith("lora_unet") and key.endswith("lora_up.weight")]
    tensors[ups[0]] = torch.full_like(tensors[ups[0]], float("nan"))
    tensors[ups[1]] = torch.zeros_like(tensors[ups[1]])
    tensors[ups[2]] = tensors[ups[2]] * 1000
    tensors = {key: t * 0 if "te2" in key and "alpha" not in key else t for key, t in tensors.items()}
    save_file(tensors, tmp_path / "bad.safetensors")
    assert run("check", tmp_path / "bad.safetensors") == 3
    page = capsys.readouterr().out
    assert "lora_up holds NaN or infinity" in page
    assert "warning: unet: 1 of " in page and "modules are zero, such as" in page
    assert "times as much as the median module" in page
    assert "error: text_encoder_2: all 12 modules are zero" in page
    assert "2 errors, 2 warnings" in page
