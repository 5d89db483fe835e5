"""Sample prompts with options of their own, and the same without the trigger word."""

import pytest

from sdxl_lora.config.sample_prompt import (
    SamplePrompt,
    parse_prompt,
    read_prompts_file,
    with_defaults,
    with_partners,
)
from sdxl_lora.config.trigger_word import without_trigger_words
from sdxl_lora.errors import ConfigError
from tests.helpers.configs import flat_train_config


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("a cat", SamplePrompt("a cat")),
        ("", SamplePrompt("")),
        (
            "a cat --w 1024 --h 768 --d 42 --l 7.5 --s 30 --n blurry, dark",
            SamplePrompt("a cat", "blurry, dark", 1024, 768, 42, 7.5, 30),
        ),
        ('a cat --n "bad -- very bad" --d 0', SamplePrompt("a cat", "bad -- very bad", seed=0)),
        ("a cat --n dogs' tails", SamplePrompt("a cat", "dogs' tails")),
        ("a cat --d=7 --l=0", SamplePrompt("a cat", seed=7, guidance_scale=0.0)),
        ("a cat - or two -- on a sofa, e-mail --s 4", SamplePrompt("a cat - or two -- on a sofa, e-mail", steps=4)),
        ("--n dark", SamplePrompt("", "dark")),
    ],
)
def test_prompts_are_read_as_in_kohyas_files(line, wanted):
    assert parse_prompt(line) == wanted


@pytest.mark.parametrize(
    "line, words",
    [
        ("a cat --x 3", "unknown option --x; the options are --w width"),
        ("a cat --width 64", "unknown option --width"),
        ("a cat --w 60", "a width of 60, it must be a multiple of 8 above 0"),
        ("a cat --h 0", "a height of 0"),
        ("a cat --w big", "--w 'big', it must be a number"),
        ("a cat --s", "--s '', it must be a number"),
        ("a cat --s 0", "a steps of 0, it must be above 0"),
        ("a cat --l nan", "guidance_scale of nan, it must be at least 0"),
        ("a cat --d -1", "a seed of -1"),
        ("a cat --d 1 --d 2", "has --d twice"),
    ],
)
def test_wrong_options_are_refused_with_the_config(line, words, tmp_path):
    with pytest.raises(ConfigError, match="the prompt 'a cat") as error:
        flat_train_config(output_dir="run", train_data_dir="data", validation_prompt=("a dog", line))
    assert words in str(error.value)


def test_a_file_of_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# comment\n\n a cat --d 1 \n#another\na dog\n", encoding="utf-8-sig")
    assert read_prompts_file(str(path)) == ["a cat --d 1", "a dog"]
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"prompts.txt holds no prompts: write one per line"):
        read_prompts_file(str(path))
    path.write_bytes(b"caf\xe9")
    for wrong in (path, tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(ConfigError, match="cannot read validation_prompts_file"):
            read_prompts_file(str(wrong))


def test_defaults_fill_only_what_is_left_open():
    filled = with_defaults(SamplePrompt("a cat", seed=0, guidance_scale=0.0), seed=5, guidance_scale=5.0, steps=9)
    assert (filled.seed, filled.guidance_scale, filled.steps) == (0, 0.0, 9)


@pytest.mark.parametrize(
    "text, rest",
    [
        ("sks, a cat on a sofa", "a cat on a sofa"),
        ("a photo of sks cat", "a photo of cat"),
        ("a cat, SKS", "a cat"),
        ("a cat, sks, on a sofa", "a cat, on a sofa"),
        ("desks and asks", "desks and asks"),
        ("sks", ""),
    ],
)
def test_the_trigger_word_is_taken_out_as_a_word(text, rest):
    assert without_trigger_words(text, ["sks"]) == rest
    assert without_trigger_words(f"ohwx man, {text}", ["sks", "ohwx man"]) == rest


def test_each_prompt_with_the_trigger_word_gets_a_partner_that_differs_in_it_alone():
    first, other = SamplePrompt("sks, a cat", "dark", 64, 64, 3, 5.0, 4), SamplePrompt("a dog", seed=1)
    pair = SamplePrompt("a cat", "dark", 64, 64, 3, 5.0, 4, is_without_trigger=True)
    assert with_partners([first, other], ["xyz", "sks"]) == [first, pair, other]
    with pytest.raises(ConfigError, match="no validation prompt contains the trigger word 'xyz'"):
        with_partners([first, other], ["xyz"])
    with pytest.raises(ConfigError, match="needs a trigger word, which `python -m preprocess"):
        with_partners([first, other], [])
