"""Several datasets: how they are named, their shares of the turns, and that they train as one."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from PIL import Image

from sdxl_lora.config.cli import load_config, to_yaml
from sdxl_lora.config.dataset_spec import DatasetEntry, parse_entries, repeats_of
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.trigger_word import with_trigger_word
from sdxl_lora.data.concat_dataset import ConcatDataset
from sdxl_lora.data.dataset import open_dataset, trigger_words_of
from sdxl_lora.data.image_dataset import ImageDataset, dataset_key
from sdxl_lora.data.sampler import BucketSampler
from sdxl_lora.errors import CheckpointError, ConfigError, DataError
from sdxl_lora.run.events import read_events
from sdxl_lora.training.data import open_images
from tests.helpers.configs import flat_train_config

MAPPINGS = """\
output_dir: x
datasets:
  - data/cat
  - data/dog:2.5
  - train_data_dir: "data: {a}, 'b'"
    trigger_word: "sks, dog"
  - {dataset_name: me/pets, repeats: 1e-1, is_class_images: true}
"""


def test_a_dataset_is_named_by_a_folder_with_repeats_or_a_mapping(tmp_path):
    (tmp_path / "run.yaml").write_text(MAPPINGS)
    config = load_config(TrainConfig, ["--config", str(tmp_path / "run.yaml")])
    assert parse_entries(config.data.datasets) == [
        DatasetEntry("data/cat"),
        DatasetEntry("data/dog", repeats=2.5),
        DatasetEntry("data: {a}, 'b'", trigger_word="sks, dog"),
        DatasetEntry(dataset_name="me/pets", repeats=0.1, is_class_images=True),
    ]
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(TrainConfig, ["--config", str(tmp_path / "again.yaml")]) == config
    assert load_config(TrainConfig, ["--output_dir", "x", "--datasets", *config.data.datasets]) == config


WORDS = ["no", "0123", "1e3", "12:30", "2024-01-01", "yes", "1_000", "0x1F", ".inf", "-.5", "0o17", "0b101", "Off"]


@pytest.mark.parametrize("word", WORDS)
def test_texts_of_a_dataset_stay_what_they_are_and_nothing_is_none(word, tmp_path):
    keys = {"train_data_dir": word, "trigger_word": word, "dataset_config_name": word}
    entry = DatasetEntry(**keys)
    assert parse_entries([f"{{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}"]) == [entry]
    lines = [f"    {key}: {value}" for key, value in keys.items()]
    (tmp_path / "run.yaml").write_text("output_dir: x\ndatasets:\n  -\n" + "\n".join(lines))
    assert parse_entries(load_config(TrainConfig, ["--config", str(tmp_path / "run.yaml")]).data.datasets) == [entry]


@pytest.mark.parametrize("nothing", ["", "~", "null", "NULL", "'  '", '"\\n"'])
def test_an_empty_trigger_word_is_none_and_no_comma_in_front_of_captions(nothing, tmp_path):
    text = f"output_dir: x\ndatasets:\n  - {{train_data_dir: a, trigger_word: {nothing}}}\n"
    (tmp_path / "empty.yaml").write_text(text)
    config = load_config(TrainConfig, ["--config", str(tmp_path / "empty.yaml")])
    assert parse_entries(config.data.datasets) == [DatasetEntry("a")]
    (tmp_path / "prepare.yaml").write_text(f"input_dir: a\noutput_dir: x\ntrigger_word: {nothing}\n")
    assert load_config(PreprocessConfig, ["--config", str(tmp_path / "prepare.yaml")]).trigger_word == ""


@pytest.mark.parametrize(
    "datasets, words",
    [
        (("data/a:0",), "repeats in .* must be above 0"),
        (("{train_data_dir: a, repeats: often}",), "repeats in .* must be a number"),
        (("{train_data_dir: a, weight: .inf}",), "must be above 0"),
        (("{train_data_dir: a, repeat: 2}",), "unknown key 'repeat', did you mean repeats"),
        (("{train_data_dir: a, dataset_name: b}",), "either train_data_dir or dataset_name"),
        (("{repeats: 2}",), "either train_data_dir or dataset_name"),
        (("{train_data_dir: a, weight: 1, repeats: 1}",), "repeats and a weight"),
        (("{train_data_dir: a, is_class_images: 3}",), "true or false"),
        (("{train_data_dir: [a, b]}",), "train_data_dir in .* must be a single string"),
        (("{train_data_dir: [",), "not a mapping in YAML"),
        (("a", "{train_data_dir: b, weight: 1}"), "every dataset a weight, or none of them: a has none"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused_by_the_config(datasets, words):
    with pytest.raises(ConfigError, match=f"datasets: .*{words}"):
        flat_train_config(output_dir="x", datasets=datasets)
    with pytest.raises(ConfigError, match=r"give one of train_data_dir .* or datasets"):
        flat_train_config(output_dir="x", datasets=("a",), train_data_dir="b")


def test_turns_are_shared_as_the_weights_are():
    """Sixty pictures of weight 1, four of weight 3, six of weight 1: a fifth, three fifths, a fifth of the turns."""
    entries = [DatasetEntry("a", weight=1), DatasetEntry("b", weight=3), DatasetEntry("c", weight=1)]
    counts = [60, 4, 6]
    repeats = repeats_of(entries, counts)
    assert repeats == [1, 45, 10]
    assert repeats_of([DatasetEntry("a", repeats=0.1), DatasetEntry("b")], [5, 6]) == [Fraction(1, 10), 1]
    of_image = [repeat for repeat, count in zip(repeats, counts, strict=True) for _ in range(count)]
    dataset = [number for number, count in enumerate(counts) for _ in range(count)]
    buckets = [(64, 64 + 8 * (image % 3)) for image in range(70)]
    for seed in range(3):
        batches = BucketSampler(buckets, 4, seed, None, of_image)
        rows = batches.from_step(0)
        seen = Counter(dataset[sample.example] for _ in range(600) for sample in next(rows)[1])
        shares = [seen[number] / 2400 for number in range(3)]
        assert shares == pytest.approx([0.2, 0.6, 0.2], abs=0.01)


@pytest.fixture
def two_folders(tmp_path):
    """Three red pictures with captions and two blue ones, one of them without."""
    for name, colour, count in (("red", (200, 0, 0), 3), ("blue", (0, 0, 200), 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64 + number), colour).save(tmp_path / name / f"{number}.png")
            if number < 2 or name == "red":
                (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}")
    (tmp_path / "blue" / "1.txt").unlink()
    return tmp_path / "red", tmp_path / "blue"


@pytest.mark.filterwarnings("ignore:1 of 2 images have an empty caption")
def test_joined_pictures_are_those_of_the_folders_with_their_own_words(two_folders):
    red, blue = (ImageDataset(open_dataset(str(folder)), resolution=64) for folder in two_folders)
    entries = [DatasetEntry("red", repeats=2), DatasetEntry("blue", trigger_word="sks", is_class_images=True)]
    joined = ConcatDataset([red, blue], entries)
    assert [example.caption for example in joined.examples] == ["red 0", "red 1", "red 2", "sks, blue 0", "sks"]
    assert [example.is_class_image for example in joined.examples] == [False] * 3 + [True] * 2
    assert [example.repeats for example in joined.examples] == [2, 2, 2, 1, 1] and len(joined) == 5
    for index in range(5):
        own = red.load(index, True) if index < 3 else blue.load(index - 3, True)
        assert all(torch.equal(own[name], value) for name, value in joined.load(index, True).items())
    assert with_trigger_word("a SKS cat", "sks") == "a SKS cat" and with_trigger_word("risks", "sks") == "sks, risks"
    other = ConcatDataset([red, blue], [DatasetEntry("red", repeats=3), entries[1]])
    assert dataset_key(joined.examples) != dataset_key(other.examples)


@pytest.mark.filterwarnings("ignore:1 of 2 images have an empty caption")
def test_a_run_of_two_datasets_sees_each_by_its_repeats_and_resumes_exactly(train, train_config, two_folders, tmp_path):
    red, blue = map(str, two_folders)
    (two_folders[0] / "README.md").write_text("---\ntrigger_word: rrr\n---\n")
    settings = {"train_data_dir": None, "datasets": (f"{red}:2", f"{{train_data_dir: {blue}, trigger_word: bbb}}")}
    settings |= {"max_train_steps": None, "num_train_epochs": 2, "train_batch_size": 4}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    assert [step["epoch"] for step in read_events(whole / "events.jsonl", "step")] == [0.5, 1, 1.5, 2]
    started = next(read_events(whole / "events.jsonl", "started"))
    assert (started["pictures"], started["total_steps"]) == (5, 4)
    config = train_config(**settings)
    assert trigger_words_of(config.data) == ["rrr", "bbb"] and len(open_images(config)) == 5
    train(**{**settings, "num_train_epochs": 1})
    parts = train(**settings)
    losses = [[step["loss"] for step in read_events(run / "events.jsonl", "step")] for run in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[1]) == 4
    with pytest.raises(CheckpointError, match="dataset"):
        train(**{**settings, "datasets": (red, settings["datasets"][1])})


def test_a_folder_that_is_not_there_is_named(train, captioned_photographs):
    with pytest.raises(DataError, match="no such folder: nowhere"):
        train(train_data_dir=None, datasets=(str(captioned_photographs), "nowhere"))
