"""The words around a caption, and stock phrases that go."""

import pytest

from preprocess.captions.caption_text import Wording, training_text, without_stock_phrase
from sdxl_lora.config.sections.preprocess import WordingConfig


@pytest.mark.parametrize(
    ("caption", "bare"),
    [
        ("The image shows a cat on a sofa.", "a cat on a sofa."),
        ("In this image we can see a dog.", "a dog."),
        ("This is a photo of a cup.", "a photo of a cup."),
        ("In this picture, there are two cups.", "two cups."),
        ("The image of a saint hangs on the wall.", "The image of a saint hangs on the wall."),
        ("a cat; the image shows more", "a cat; the image shows more"),
    ],
)
def test_stock_phrases_go_and_nothing_else(caption, bare):
    assert without_stock_phrase(caption) == bare


def test_words_around_a_caption():
    assert training_text("a cat", "sks", "photo of", ", 35mm") == "sks, photo of a cat, 35mm"
    assert training_text("a cat", "sks", suffix="in the style of x") == "sks, a cat in the style of x"
    assert training_text("", "sks") == "sks"
    assert training_text("a sks cat", "sks") == "a sks cat"
    assert training_text("a c++ book", "c++") == "a c++ book"
    assert Wording("sks", WordingConfig()).text("a cat", is_class_image=True) == "a cat"
