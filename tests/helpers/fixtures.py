"""Folders of images and models that several tests share; conftest.py makes them known to all."""

import json

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory):
    """Path of a diffusers folder with the tiny random SDXL that has as many layers a level as SDXL."""
    from examples.tiny_sdxl import tiny_sdxl

    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    tiny_sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_florence2(tmp_path_factory):
    """Path of a folder with the tiny random Florence-2."""
    from examples.tiny_florence2 import save_tiny_florence2

    folder = tmp_path_factory.mktemp("models") / "tiny-florence2"
    save_tiny_florence2(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory):
    """Path of a second captioner, of another family."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("models") / "tiny-blip"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "photo", "of", "cat", "dog", "red"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocab, extra_special_tokens=["[DEC]", "[ENC]"])
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **small, "vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 5, "pad_token_id": 0,
            "eos_token_id": 3, "sep_token_id": 3, "max_position_embeddings": 64, "initializer_range": 0.5,
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(1)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def two_sizes(photographs, tmp_path_factory):
    """Path of a dataset of two images of 64x64 and two of 96x64, as preprocess writes them."""
    folder = tmp_path_factory.mktemp("two sizes")
    lines = []
    for number, path in enumerate(sorted(photographs.iterdir())):
        with Image.open(path) as image:
            image.convert("RGB").resize((64, 64) if number % 2 else (96, 64)).save(folder / f"{number}.png")
        sizes = {"original_size": [64, 96], "crop_top_left": [0, 0]}
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"picture {number}", **sizes}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def five_of_two_sizes(photographs, tmp_path_factory):
    """Path of a saved dataset of prepared images: three of 64x64, two of 96x64."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    folder = tmp_path_factory.mktemp("five of two sizes")
    rows = {"image": [], "text": [], "original_size": [], "crop_top_left": []}
    for number, path in enumerate([*sorted(photographs.iterdir()), min(photographs.iterdir())]):
        width = 64 if number < 3 else 96
        with Image.open(path) as photograph:
            photograph.resize((width, 64)).save(folder / f"{number}.png")
        rows["image"].append(str(folder / f"{number}.png"))
        rows["text"].append(f"photograph {number}")
        rows["original_size"].append([512, 8 * width])
        rows["crop_top_left"].append([0, number])
    dataset = Dataset.from_dict(rows).cast_column("image", ImageFeature())
    dataset.save_to_disk(folder / "disk")
    return folder / "disk"


@pytest.fixture
def nine_images(tmp_path):
    """Nine images of three shapes, one of them broken, and one caption."""
    from tests.helpers.preparing import noise

    folder = tmp_path / "raw"
    folder.mkdir()
    for seed in range(9):
        noise(*[(96, 80), (160, 96), (80, 120)][seed % 3], seed=seed).save(folder / f"{seed}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:300])
    (folder / "7.txt").write_text("a person's words")
    return folder
