"""Learning on the shapes base: a LoRA learns its concept under the trigger word, and nothing else."""

import warnings
from functools import cache

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

import train_sdxl_lora
from examples.shapes.learning import TRIGGER_WORD, lora_quality, spread, write_images
from examples.shapes.quality import BASE, base_quality, load_base
from examples.shapes.retrain import main as retrain
from examples.shapes.world import combinations
from preprocess.__main__ import main as preprocess
from sdxl_lora.config.cli import load_config
from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.diffusion.flow import FLOW
from sdxl_lora.models.prediction import V
from sdxl_lora.run.events import read_events
from tests.helpers.paths import ROOT
from tests.helpers.runs import column

ASKED = 28  # every (colour, background) once
KNOWN = 70  # every second combination of known shapes
SHORT = {"known": 14, "max_train_steps": 300}  # every second (colour, background), in the shapes by turns
FEW = {"asked": 2, "known": 4}  # where the question is not how much was learned
STYLE = {"debiased_estimation": False, "snr_gamma": 1.0, "rank": 32, "max_train_steps": 1200}
STYLE |= {"train_text_encoder": True, "text_encoder_lr": 2e-3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A concept's pictures and class pictures as preprocess leaves them; `make demo` trains on the object's."""

    @cache
    def prepared(concept):
        folder = tmp_path_factory.mktemp(concept)
        write_images(folder, concept)
        flags = {"input_dir": folder / "raw", "class_images": folder / "class", "output_dir": folder / "data"}
        flags |= {"trigger_word": TRIGGER_WORD, "resolution": 64, "caption_model": "none", "num_workers": 0}
        assert preprocess([f"--{name}={value}" for name, value in flags.items()]) == 0
        return folder / "data"

    return prepared


@pytest.fixture(scope="module")
def train_as_demo(dataset, tmp_path_factory):
    """Trains as the demo does, but for the given settings, and returns the run's folder."""
    demo = load_config(TrainConfig, ["--config", str(ROOT / "examples" / "demo.yaml")])

    def run(concept="object", base=BASE, **settings):
        data, folder = dataset(concept), tmp_path_factory.mktemp("run")
        here = {"pretrained_model_name_or_path": str(base), "train_data_dir": str(data), "output_dir": str(folder)}
        here |= {"cache_dir": str(data.parent / "cache"), "validation_prompt": (), "report_to": "none"}
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        train_sdxl_lora.train(replace_flat(demo, **here | settings))
        return folder

    return run


@pytest.fixture(scope="module")
def learn(train_as_demo):
    """Trains, and returns what the base then draws; its attribute `texts` is what the last training said."""

    def run(concept="object", asked=ASKED, known=KNOWN, base=BASE, **settings):
        folder = train_as_demo(concept, base, **settings)
        run.texts = [event["text"] for event in read_events(folder / "events.jsonl", "message")]
        return lora_quality(folder, asked, known=known, concept=concept, base=base)

    return run


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    """A function from an objective to the base, its UNet retrained for it by the script."""
    work_dir = tmp_path_factory.mktemp("retrained")  # its images are encoded once

    @cache
    def made(objective):
        retrain([objective, "--output_dir", str(work_dir / "bases" / objective), "--work_dir", str(work_dir)])
        return work_dir / "bases" / objective

    return made


@pytest.fixture(scope="module")
def base():
    """What the base alone draws of few prompts with and without the trigger word, and of known shapes."""
    return lora_quality(None, 8, known=SHORT["known"])


@pytest.fixture(scope="module")
def known_before():
    """The base's share of known shapes, over the prompts that a LoRA is asked."""
    return base_quality(load_base(), spread(combinations(), KNOWN), seed=0)["right"]


def has_learned(shares, known_before, least=0.85, forgotten=0.05):
    """The concept where it is asked for, in its colours, hardly elsewhere; known shapes as before."""
    return (
        shares["with_trigger"] >= least
        and shares["without_trigger"] <= 0.10
        and shares["known"] >= known_before - forgotten
    )


def test_base_knows_shapes_and_not_the_concept(base):
    assert base["known"] >= 0.85 and base["with_trigger"] <= 1 / 8 and base["without_trigger"] <= 1 / 8, base


@pytest.mark.slow
@pytest.mark.learning
def test_lora_draws_the_concept_and_keeps_the_prior(learn, base):
    """In 300 of the demo's 800 steps. After 260, two seeds of training and two of scoring gave 28 to 57 %, and 0 to 7 %
    without the trigger word."""
    shares = learn(**SHORT)
    assert has_learned(shares, base["known"], least=0.25, forgotten=0.15), (shares, base)


@pytest.mark.slow
def test_the_demos_lora_draws_the_concept_and_keeps_the_prior(learn, known_before):
    shares = learn()
    assert has_learned(shares, known_before), (shares, known_before)


@pytest.mark.slow
def test_so_does_one_of_another_alpha_with_text_encoders_trained(learn, known_before):
    shares = learn(lora_alpha=8, train_text_encoder=True, text_encoder_lr=5e-4)
    assert has_learned(shares, known_before), (shares, known_before)


@pytest.mark.slow
@pytest.mark.parametrize("objective, predicts", [("v", V), ("v_zero_snr", V), ("flow", FLOW)])
def test_so_does_one_on_a_base_that_predicts_something_else(learn, retrained, objective, predicts):
    """Tried before the first step, the base predicts what it says, by the margin. On v with zero terminal SNR, 750
    steps gave 82 % with the trigger word, 4 % without, and 90 % of known shapes, of 97 before."""
    base = retrained(objective)
    before = base_quality(load_base(base), spread(combinations(), KNOWN), seed=0)["right"]
    assert before >= 0.95
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*zero terminal SNR.*")  # of the two schedules of v the other one
        shares = learn(base=base, debiased_estimation=False)
    [text] = [text for text in learn.texts if "tested on" in text]
    print(objective, text, shares, before)
    assert f"the base predicts {predicts} " in text
    assert has_learned(shares, before, least=0.7, forgotten=0.1), (shares, before)


@pytest.mark.slow
def test_lora_draws_most_known_shapes_in_the_style_and_none_without_the_trigger_word(learn, known_before):
    shares = learn("style", **STYLE)  # 79 % with the trigger word when measured: less than of the object
    assert shares["with_trigger"] >= 0.6 and shares["without_trigger"] <= 0.10, shares
    assert shares["known"] >= known_before - 0.05, (shares, known_before)


@pytest.mark.slow
def test_so_does_one_that_multiplies_in_8_bits(learn, base):
    shares = learn(**SHORT, base_precision="int8", base_products="8bit")
    assert has_learned(shares, base["known"], least=0.25, forgotten=0.15), (shares, base)


@pytest.mark.slow
def test_products_in_8_bits_have_the_losses_of_bf16(train_as_demo):
    """On the shapes base, step by step within 3 %, and 1 % on average."""
    ways = [{}, *({"base_precision": kind, "base_products": "8bit"} for kind in ("int8", "fp8"))]
    bf16, *in_8_bits = [
        column(train_as_demo(mixed_precision="bf16", max_train_steps=8, logging_steps=1, **settings), "loss")
        for settings in ways
    ]
    assert len(bf16) == 8
    for losses in in_8_bits:
        assert losses == pytest.approx(bf16, rel=0.03)
        assert sum(losses) == pytest.approx(sum(bf16), rel=0.01)


def test_learning_rate_zero_fails_the_criterion(learn):
    shares = learn(learning_rate=0.0, max_train_steps=5, **FEW)
    assert not has_learned(shares, shares["known"], least=0.6)
    assert shares == lora_quality(None, **FEW)
