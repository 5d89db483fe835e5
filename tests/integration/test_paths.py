"""Folders with spaces, umlauts and long names, from the photographs to the LoRA."""

import json
import shutil

from safetensors import safe_open

from sdxl_lora.run.checkpoints import checkpoints, problem_with
from tests.helpers.preparing import preprocess, rows_of


def test_paths_of_250_characters_with_spaces_and_umlauts_run_the_whole_way(
    train, captioned_photographs, tiny_base, tmp_path, capsys
):
    place = tmp_path / "Meine Bilder (größer) & Söhne's" / " ".join(["lang"] * 30)
    raw, data, run, base = (place / name for name in ("Fotos 1 #ä", "Datensatz ü", "my cat Ä", "Modell é"))
    shutil.copytree(captioned_photographs, raw)
    for path in sorted(raw.iterdir()):
        path.rename(raw / f"Schöne Grüße, {path.name}")
    shutil.copytree(tiny_base, base)
    assert len(str(run / "checkpoint-1")) > 250

    assert preprocess(raw, data, "--trigger_word", "sks") == 0
    assert len(rows_of(data)) == 4
    settings = {"train_data_dir": str(data), "output_dir": str(run), "cache_dir": str(place / "Zwischenspeicher ß")}
    settings |= {"pretrained_model_name_or_path": str(base), "dataloader_num_workers": 1, "checkpointing_steps": 1}
    settings |= {"validation_prompt": ("sks, a cat",), "num_validation_images": 1, "validation_inference_steps": 1}
    train(**settings, max_train_steps=1, report_to="tensorboard")
    train(**settings, max_train_steps=2, report_to="tensorboard", save_side_files=True)

    assert [problem_with(checkpoint) for checkpoint in checkpoints(run)] == [None, None]
    assert {path.name for path in run.glob("*.safetensors")} == {
        "my-cat-A.safetensors",
        "pytorch_lora_weights.safetensors",
    }
    assert (run / "my-cat-A.json").is_file() and (run / "samples" / "grid.png").is_file()
    with safe_open(run / "my-cat-A.safetensors", framework="pt") as file:
        assert json.loads(json.dumps(file.metadata()))["modelspec.trigger_phrase"] == "sks"
    assert "the LoRA files are called my-cat-A" in capsys.readouterr().err
