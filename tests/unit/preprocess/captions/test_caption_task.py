"""Questions to a captioner: tasks in Florence-2's spelling, and no setting without effect."""

import pytest

from preprocess.captions.caption_task import check_task, refuse_unused
from sdxl_lora.errors import ConfigError


def refusal(task, prompt, model_type, takes_prompt=True):
    """What is said of it, or None."""
    try:
        refuse_unused([check_task(task, prompt, model_type, takes_prompt)])
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("task", ["<CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>", "<GENERATE_TAGS>", "<DocVQA>who?"])
def test_tasks_of_florence_and_of_its_fine_tunes_are_taken(task):
    assert refusal(task, None, "florence2") is None


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
        ("generate tags", "perhaps <GENERATE_TAGS>"),
        ("", "written in angle brackets"),
    ],
)
def test_a_task_in_another_spelling_is_refused_with_the_nearest(task, said):
    assert said in refusal(task, None, "florence2")


def test_a_setting_without_effect_on_this_captioner_is_refused():
    said = refusal("<CAPTION>", "What does she wear?", "florence2")
    assert "caption_prompt has no effect on Florence-2" in said
    said = refusal("<CAPTION>", None, "blip")
    assert "caption_task <CAPTION> has no effect on a blip" in said and "caption_prompt" in said
    said = refusal("<DETAILED_CAPTION>", "a photo of", "vision-encoder-decoder", takes_prompt=False)
    assert "caption_prompt has no effect on this vision-encoder-decoder" in said
    assert refusal("<DETAILED_CAPTION>", "a photo of", "blip") is None


def test_of_several_captioners_one_that_reads_a_setting_is_enough():
    florence = check_task("<CAPTION>", "What does she wear?", "florence2", takes_prompt=True)
    refuse_unused([florence, check_task("<CAPTION>", "What does she wear?", "blip", takes_prompt=True)])
    with pytest.raises(ConfigError, match="caption_prompt has no effect on Florence-2"):
        refuse_unused([florence, florence])
