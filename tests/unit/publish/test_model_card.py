"""The model card: the Hub reads its header, its Python runs, its text cannot break out."""

import re

import yaml

from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.metadata import usage_lines
from sdxl_lora.publish.model_card import model_card, strength_section, with_section
from tests.helpers.adapters import tiny_with_lora


def test_its_python_draws_with_the_lora(tmp_path, monkeypatch, tiny_base):
    _, models = tiny_with_lora(components=("unet",))
    write_lora_files(tmp_path, "cat", models)
    card = model_card("cat", "owner/base", "sks", "a cat's chair")
    python = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert '"owner/base"' in python and "sks, a cat's chair" in python
    python = (
        python.replace('"owner/base"', repr(str(tiny_base))).replace('"cuda"', '"cpu"').replace("float16", "float32")
    )
    draw = "pipe.set_progress_bar_config(disable=True)\nimage = pipe(num_inference_steps=2, prompt="
    python = python.replace("image = pipe(", draw)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python, names)
    assert names["pipe"].get_active_adapters()
    assert names["image"].size == (64, 64)


def test_the_lines_are_those_that_training_prints():
    card = model_card("cat", "owner/base", "sks", "a cat")
    python, tag = usage_lines("cat", "sks", "a cat")
    assert all(line in card for line in [*python.split("; "), tag])


def test_the_header_is_valid_yaml_and_private_paths_stay_out():
    samples = [('sks, a "quoted": prompt\n---', "samples/1.png")]
    card = model_card("cat", "/home/someone/models/base.safetensors", "sks: #1", "a cat", samples, {"rank": 16})
    header = yaml.safe_load(card.split("\n---\n")[0])
    assert "base_model" not in header and "trained on base.safetensors." in card
    assert yaml.safe_load(model_card("cat", "owner/base").split("\n---\n")[0])["base_model"] == "owner/base"
    assert header["instance_prompt"] == "sks: #1"
    assert header["widget"] == [{"text": samples[0][0], "output": {"url": "samples/1.png"}}]
    assert "| rank | 16 |" in card
    assert "someone" not in card


def test_text_is_shown_as_it_is():
    card = model_card("cat", "owner/base", "<b>sks</b>", settings={"note": "a | b\n# title <script>"})
    assert "**&lt;b>sks&lt;/b>**" in card
    assert "| note | a \\| b # title &lt;script> |" in card


def test_a_section_is_put_in_replaced_and_taken_out_and_all_else_stays():
    card = model_card("cat", "owner/base", "sks", "a cat", settings={"rank": 16})
    lines = strength_section("cat-recommended", "sks", "a cat", 0.8, "it scored best | of all")
    with_it = with_section(card, "Recommended strength", lines)
    assert with_it.startswith(card.rstrip("\n")) and "strength **0.8**" in with_it
    assert "<lora:cat-recommended:0.8>" in with_it and 'cross_attention_kwargs={"scale": 0.8}' in with_it
    assert "of all" in with_it and r"best \| of" in with_it
    assert with_section(with_it, "Recommended strength", lines) == with_it
    more = with_it + "\n## Mine\n\nwritten by hand\n"
    other = with_section(more, "Recommended strength", ["at half"])
    assert "at half\n\n## Mine\n\nwritten by hand\n" in other and "0.8" not in other
    assert with_section(with_it, "Recommended strength", []) == card
