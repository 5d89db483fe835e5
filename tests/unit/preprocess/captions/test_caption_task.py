"""What a captioner may be asked: tasks as Florence-2 spells them, and no setting without effect."""

import pytest

from preprocess.captions.caption_task import check_task
from sdxl_lora.errors import ConfigError


@pytest.mark.parametrize("task", ["<CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>", "<GENERATE_TAGS>", "<DocVQA>who?"])
def test_tasks_of_florence_and_of_its_fine_tunes_are_taken(task):
    check_task(task, None, "florence2", takes_prompt=True)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("CAPTION", "did you mean <CAPTION>"),
        ("<caption>", "did you mean <CAPTION>"),
        (" <CAPTION> ", "did you mean <CAPTION>"),
        ("<CAPTION> please", "did you mean <CAPTION>"),  # Florence-2's processor refuses it, picture by picture
        ("detailed caption", "did you mean <DETAILED_CAPTION>"),
        ("more-detailed-caption", "did you mean <MORE_DETAILED_CAPTION>"),
        ("<DETAILD_CAPTION>", "did you mean <DETAILED_CAPTION>"),
        ("ocr", "did you mean <OCR>"),
        ("od", "gives boxes, not a caption"),
        ("<OD>", "gives boxes, not a caption"),
        ("generate tags", "<GENERATE_TAGS> perhaps"),
        ("", "stands in angle brackets"),
    ],
)
def test_a_task_in_another_spelling_is_refused_with_the_nearest(task, said):
    with pytest.raises(ConfigError, match=said):
        check_task(task, None, "florence2", takes_prompt=True)


def test_a_setting_without_effect_on_this_captioner_is_refused():
    with pytest.raises(ConfigError, match="caption_prompt has no effect on Florence-2"):
        check_task("<CAPTION>", "What does she wear?", "florence2", takes_prompt=True)
    with pytest.raises(ConfigError, match=r"caption_task <CAPTION> has no effect on a blip.*caption_prompt"):
        check_task("<CAPTION>", None, "blip", takes_prompt=True)
    with pytest.raises(ConfigError, match="caption_prompt has no effect on this vision-encoder-decoder"):
        check_task("<DETAILED_CAPTION>", "a photo of", "vision-encoder-decoder", takes_prompt=False)
    check_task("<DETAILED_CAPTION>", "a photo of", "blip", takes_prompt=True)
