"""Settings found by what they are called, those that were changed, and each only where it means something."""

import pytest

from sdxl_lora.config.train import TrainConfig
from tests.helpers.browser import box, choose, fill, shoot, tab
from tests.helpers.waiting import until
from webui.settings.fields import fields_of

pytestmark = pytest.mark.slow


def seen(page) -> list[str]:
    """The settings in sight, in their order."""
    ids = page.locator("[id^=train-section] [id^=train-]").evaluate_all(
        "all => all.filter(one => one.offsetParent && getComputedStyle(one).display !== 'none').map(one => one.id)"
    )
    return [name for name in (one.removeprefix("train-") for one in ids) if name in fields_of(TrainConfig)]


def find(page, words: str) -> None:
    page.locator(".finder [type=search]").locator("visible=true").fill(words)


def test_fields_appear_where_they_mean_something_and_a_search_or_a_tick_leaves_some(story):
    page = story.page
    tab(page, 3)
    box(page, "train-rank").wait_for()
    until(lambda: "train_unet" not in seen(page))
    page.locator("#train-train_text_encoder input").check()
    until(lambda: "train_unet" in seen(page))
    page.locator("#train-train_text_encoder input").uncheck()
    until(lambda: "train_unet" not in seen(page))

    find(page, "huber")
    until(lambda: seen(page) == ["loss_type", "huber_c", "huber_schedule"])
    note = page.evaluate("getComputedStyle(document.querySelector('#train-huber_c'), '::before').content")
    assert note == '"Only with Loss type: huber, smooth_l1"'
    assert page.locator(".finder [role=status]").locator("visible=true").inner_text().startswith("3 of ")
    shoot(page, "found")
    find(page, "melange de bruit")
    page.locator(".finder [role=status]", has_text="No settings found.").wait_for()
    find(page, "taux apprentissage encodeur")  # French is found in an English browser
    until(lambda: "text_encoder_lr" in seen(page) and "rank" not in seen(page))
    find(page, "")
    until(lambda: "rank" in seen(page) and "loss_type" not in seen(page))

    choose(page, "train-subject", "A style, 30 to 200 images")
    until(lambda: box(page, "train-rank").input_value() == "32")
    fill(page, "train-rank", "5")
    page.locator(".finder label").locator("visible=true").click()
    until(lambda: seen(page) == ["output_dir", "rank"])  # the name was given
    page.locator(".finder label").locator("visible=true").click()
    find(page, "prodigy")
    until(lambda: "prodigy_beta3" in seen(page))
    fill(page, "train-prodigy_beta3", "0.5")
    find(page, "")
    page.get_by_role("button", name="Learning rate and optimizer").click()
    until(lambda: "prodigy_beta3" in seen(page))
    assert "prodigy_decouple" not in seen(page), "what is changed stays in sight, though it means nothing"
    choose(page, "train-optimizer", "prodigy")
    until(lambda: "prodigy_decouple" in seen(page))
    shoot(page, "prodigy")


def test_a_refused_field_in_a_closed_fold_is_opened_and_the_page_is_french_where_the_browser_is(story):
    page = story.open(locale="fr-FR", dark=True)
    tab(page, 3)
    find(page, "huber")
    page.get_by_placeholder("Chercher un réglage").locator("visible=true").wait_for()
    until(lambda: "huber_c" in seen(page))
    fill(page, "train-huber_c", "-1")
    find(page, "")
    until(lambda: "huber_c" not in seen(page))
    page.locator("#train").click()
    until(lambda: "huber_c" in seen(page))
    page.locator("#train-problems button", has_text="Seuil de Huber").click()
    assert page.evaluate("document.activeElement.closest('#train-huber_c') !== null"), "a problem leads to its field"
    shoot(page, "refused-in-french")
    page.context.close()
