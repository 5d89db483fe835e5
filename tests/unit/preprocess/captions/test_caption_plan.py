from preprocess.captions.caption_plan import plan_of
from preprocess.images.recipe import recipe_of
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.preprocess import PreprocessConfig


def test_caches_of_earlier_versions_are_found_again():
    """The names of a recipe and of a captioner, as they have always been: another name makes all of it anew."""
    config = PreprocessConfig("a", "b", "sks")
    assert recipe_of(config).digest() == "7d9784592d82c6b8"
    assert plan_of(config).captioners[0].name == (
        "CaptionerOptions(model='florence-community/Florence-2-base', task='<DETAILED_CAPTION>', prompt=None, "
        "num_beams=3, max_new_tokens=256, dtype='auto', attention='auto')"
    )
    changes = {"resolution": 768, "min_bucket_side": 256, "buckets": "off", "masks": "folder"}
    config = replace_flat(config, **changes, caption_prompt="what", crops_per_picture=2, crop="random")
    assert recipe_of(config).digest() == "7b345e3cd15c81f5"
    assert "prompt='what'" in plan_of(config).captioners[0].name
