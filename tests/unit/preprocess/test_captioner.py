"""Captions: the real Florence-2 classes at tiny size, who is asked for what, and the words around it."""

import gc
import weakref

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration, GenerationConfig

from examples.tiny_florence2 import WORDS, tiny_florence2_tokenizer
from preprocess.captions import captioner as caption_module
from preprocess.captions.batch_size import after_fit, first_and_most
from preprocess.captions.caption_all import caption_batch
from preprocess.captions.caption_text import Wording, training_text, without_stock_phrase
from preprocess.captions.captioner import captioner, check_captioner
from sdxl_lora.config.sections.preprocess import CaptionerConfig, WordingConfig
from sdxl_lora.errors import ConfigError
from tests.helpers.preparing import noise, report_of, rows_of
from tests.helpers.preparing import preprocess as run_preprocess


@pytest.fixture
def pictures():
    return [noise(seed=seed) for seed in range(5)]


def test_florence_gives_what_its_own_classes_give(tiny_florence2, pictures):
    options = CaptionerConfig(str(tiny_florence2), caption_task="<CAPTION>", caption_max_new_tokens=12)
    with captioner(options) as caption:
        texts = caption(pictures)
    processor = AutoProcessor.from_pretrained(tiny_florence2)
    model = Florence2ForConditionalGeneration.from_pretrained(tiny_florence2)
    for text, picture in zip(texts, pictures, strict=True):
        inputs = processor(images=[picture], text=["<CAPTION>"], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, num_beams=3, do_sample=False)
        assert text == processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        assert len(text.split()) > 4 and "<" not in text


def test_the_task_reaches_the_model(tiny_florence2, pictures):
    texts = {}
    for task in ("<CAPTION>", "<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>"):  # the last is a fine-tune's own
        with captioner(CaptionerConfig(str(tiny_florence2), caption_task=task, caption_max_new_tokens=12)) as caption:
            texts[task] = tuple(caption(pictures))
    assert len(set(texts.values())) == 3


def test_the_captioner_leaves_memory(tiny_florence2, pictures, monkeypatch):
    seen = []
    describe = caption_module.describe
    monkeypatch.setattr(
        caption_module, "describe", lambda model, *rest: seen.append(weakref.ref(model)) or describe(model, *rest)
    )
    with captioner(CaptionerConfig(str(tiny_florence2), caption_max_new_tokens=4)) as caption:
        caption(pictures[:1])
        assert seen[0]() is not None
    gc.collect()
    assert seen[0]() is None


def fake_gpu(monkeypatch, holds, free=None):
    """Captions by the first pixel, out of memory above `holds` pictures; returns the sizes that were tried.

    free: pictures that would fit by the memory that is free at first; None where nobody measures it.
    """
    sizes = []

    def describe(model, processor, images, options):
        sizes.append(len(images))
        if len(images) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [str(image.getpixel((0, 0))) for image in images]

    def with_memory_share(work, device):
        return work(), sizes[-1] / free if free else 0.0

    monkeypatch.setattr(caption_module, "describe", describe)
    monkeypatch.setattr(caption_module, "with_memory_share", with_memory_share)
    return sizes


def test_a_batch_that_does_not_fit_is_halved_and_never_grows_again(tiny_florence2, pictures, monkeypatch):
    sizes = fake_gpu(monkeypatch, holds=2)
    with captioner(CaptionerConfig(str(tiny_florence2), caption_batch_size=5)) as caption:
        assert caption(pictures) == [str(picture.getpixel((0, 0))) for picture in pictures]
        assert caption(pictures[:2]) == [str(picture.getpixel((0, 0))) for picture in pictures[:2]]
    assert sizes == [5, 2, 2, 1, 2]


@pytest.mark.parametrize(
    ("asked", "holds", "free", "tried"),
    [
        (None, 99, None, [1, 2, 4, 8, 8, 7]),  # of 30, on a CPU
        (None, 99, 11, [1, 2, 4, 8, 8, 7]),  # 8 take 73 % of the memory: 16 are not tried
        (None, 99, 9, [1, 2] + [4] * 6 + [3]),  # nor 8, which would take 89 %
        (None, 5, None, [1, 2, 4, 8] + [4] * 5 + [3]),  # a guess that failed is not repeated
        (3, 99, None, [3] * 10),
    ],
)
def test_the_batch_grows_while_memory_allows(tiny_florence2, monkeypatch, asked, holds, free, tried):
    sizes = fake_gpu(monkeypatch, holds, free)
    with captioner(CaptionerConfig(str(tiny_florence2), caption_batch_size=asked)) as caption:
        assert len(caption([Image.new("RGB", (8, 8))] * 30)) == 30
    assert sizes == tried


def test_one_picture_that_does_not_fit_is_out_of_memory(tiny_florence2, pictures, monkeypatch):
    fake_gpu(monkeypatch, holds=0)
    with captioner(CaptionerConfig(str(tiny_florence2))) as caption, pytest.raises(torch.OutOfMemoryError):
        caption(pictures)


def test_sizes_of_batches_by_hand():
    assert first_and_most(None, "cpu") == (1, 8) and first_and_most(None, "cuda") == (1, 64)
    assert first_and_most(3, "cpu") == first_and_most(3, "cuda") == (3, 3)
    assert after_fit(1, 8, 0.0) == 2 and after_fit(8, 8, 0.0) == 8 and after_fit(6, 8, 0.1) == 8
    assert after_fit(4, 64, 0.4) == 8 and after_fit(4, 64, 0.41) == 4


def test_captions_do_not_depend_on_the_batch(tiny_florence2, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed in range(5):
        noise(seed=seed).save(raw / f"{seed}.png")
    describe, sizes, texts = caption_module.describe, {}, {}
    for asked in (1, 2, None):
        seen = sizes[asked] = []
        monkeypatch.setattr(
            caption_module, "describe", lambda m, p, i, o, to=seen: to.append(len(i)) or describe(m, p, i, o)
        )
        flags = ["--caption_model", tiny_florence2, "--caption_max_new_tokens", 12]
        flags += ["--caption_batch_size", asked] if asked else []
        assert run_preprocess(raw, tmp_path / f"out{asked}", *flags) == 0
        texts[asked] = [row["text"] for row in rows_of(tmp_path / f"out{asked}")]
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], None: [1, 2, 2]}
    assert texts[1] == texts[2] == texts[None] and len(set(texts[1])) > 1


def test_what_is_no_captioner_is_refused_before_any_work(tiny_florence2, tiny_base, tmp_path, capsys):
    with pytest.raises(ConfigError, match="--caption_model FOLDER"):
        check_captioner(CaptionerConfig("nobody/nothing-of-that-name"))
    with pytest.raises(ConfigError, match="cannot load the captioner"):
        check_captioner(CaptionerConfig(str(tiny_base / "text_encoder")))
    with pytest.raises(ConfigError, match="gives boxes, not a caption"):
        check_captioner(CaptionerConfig(str(tiny_florence2), caption_task="<OD>"))
    with pytest.raises(ConfigError, match="did you mean <DETAILED_CAPTION>"):
        check_captioner(CaptionerConfig(str(tiny_florence2), caption_task="<DETAILD_CAPTION>"))
    for task in ("<MIXED_CAPTION>", "<GENERATE_TAGS>"):  # of a fine-tune
        check_captioner(CaptionerConfig(str(tiny_florence2), caption_task=task))
    raw = tmp_path / "raw"
    raw.mkdir()
    noise().save(raw / "a.png")
    assert run_preprocess(raw, tmp_path / "out", "--caption_model", "nobody/nothing-of-that-name") == 2
    assert "nobody/nothing-of-that-name" in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists()


def test_only_pictures_without_words_are_captioned(tiny_florence2, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed, name in enumerate("abc"):
        noise(seed=seed).save(raw / f"{name}.png")
    (raw / "b.txt").write_text("a person's words")
    flags = ["--caption_model", tiny_florence2, "--caption_max_new_tokens", 8, "--trigger_word", "sks"]
    assert run_preprocess(raw, tmp_path / "out", *flags) == 0
    a, b, c = (row["text"] for row in rows_of(tmp_path / "out"))
    assert b == "sks, a person's words" and a.startswith("sks, ") and c.startswith("sks, ") and a != c
    report = report_of(tmp_path / "out")
    assert report["counts"]["text_from"] == {"captioner": 2, "b.txt": 1} and report["counts"]["new_captions"] == 2


def test_one_picture_that_the_captioner_fails_on_costs_the_others_nothing():
    calls = []

    def caption(images):
        calls.append(len(images))
        if any(image.width == 13 for image in images):
            raise RuntimeError("no")
        return ["" if image.width == 7 else f"width {image.width}" for image in images]

    images = [Image.new("RGB", (width, 8)) for width in (5, 7, 13)]
    texts = caption_batch(caption, images)
    assert texts[0] == ("width 5", "") and texts[1] == ("", "the captioner gave no words, twice")
    assert texts[2][0] == "" and "failed twice (RuntimeError: no)" in texts[2][1]
    assert calls == [3, 1, 1, 1]


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


def test_cleaned_captions_are_shown_in_the_report(tmp_path, monkeypatch, tiny_florence2):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise().save(raw / "a.png")
    monkeypatch.setattr(caption_module, "describe", lambda m, p, images, o: ["The image shows a cat"] * len(images))
    assert run_preprocess(raw, tmp_path / "out", "--caption_model", tiny_florence2) == 0
    (row,) = report_of(tmp_path / "out")["rows"]
    assert row["text"] == "a cat" and row["raw_caption"] == "The image shows a cat"
    assert run_preprocess(raw, tmp_path / "out", "--caption_model", tiny_florence2, "--no_clean_captions") == 0
    assert rows_of(tmp_path / "out")[0]["text"] == "The image shows a cat"


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory):
    """A second captioner, of another family."""
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


def test_another_family_of_captioners_is_served_too(tiny_blip, pictures):
    from transformers import BlipForConditionalGeneration

    check_captioner(CaptionerConfig(str(tiny_blip)))
    with captioner(CaptionerConfig(str(tiny_blip), caption_max_new_tokens=6)) as caption:
        texts = caption(pictures[:3])
    processor = AutoProcessor.from_pretrained(tiny_blip)
    model = BlipForConditionalGeneration.from_pretrained(tiny_blip).eval()
    for text, picture in zip(texts, pictures, strict=False):
        tokens = model.generate(**processor(images=[picture], return_tensors="pt"), max_new_tokens=6, num_beams=3)
        assert text == " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split())
    with captioner(CaptionerConfig(str(tiny_blip), caption_prompt="a photo of", caption_max_new_tokens=6)) as caption:
        assert all(text.startswith("a photo of") for text in caption(pictures[:2]))


def test_writing_in_pictures_is_warned_of(tiny_florence2, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(64, 64, seed=1).save(raw / "a.png")
    Image.new("RGB", (64, 64), "black").save(raw / "b.png")
    asked = []

    def describe(model, processor, images, options):
        asked.extend([options.task] * len(images))
        return ["STOCK" if options.task == "<OCR>" and sum(i.getpixel((9, 9))) else "" for i in images]

    monkeypatch.setattr(caption_module, "describe", describe)
    (raw / "a.txt").write_text("a")
    (raw / "b.txt").write_text("b")
    flags = ["--caption_model", tiny_florence2, "--ocr"]
    assert run_preprocess(raw, tmp_path / "out", *flags) == run_preprocess(raw, tmp_path / "out", *flags) == 0
    said = [(w["source"], w["message"]) for w in report_of(tmp_path / "out")["warnings"] if "text in" in w["message"]]
    assert said == [("a.png", "text in the picture: 'STOCK'")] and asked == ["<OCR>"] * 2  # nothing is read twice
    with pytest.raises(SystemExit):
        run_preprocess(raw, tmp_path / "out", "--ocr")


def test_a_chat_model_is_asked_and_its_answer_is_the_caption(pictures, tmp_path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_florence2_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(**small, **ids, num_key_value_heads=2, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    side = {"height": 32, "width": 32}
    template = "{% for part in messages[0]['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template + "{% endfor %}",
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = CaptionerConfig(
        str(tmp_path), caption_prompt="What is it?", caption_max_new_tokens=5, caption_num_beams=1
    )
    check_captioner(options)
    with captioner(options) as caption:
        texts = caption(pictures[:2])
    for text, picture in zip(texts, pictures, strict=False):
        inputs = processor(images=[picture], text=["<image>What is it?"], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert text == " ".join(tokenizer.decode(tokens, skip_special_tokens=True).split()) and "What" not in text


def test_a_model_with_image_processor_and_tokenizer_apart_is_served(pictures, tmp_path):
    from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    tokenizer = tiny_florence2_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**small, image_size=32, patch_size=16),
        BertConfig(**small, vocab_size=len(tokenizer), initializer_range=0.5),
    )
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(config).eval()
    ids = {"decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    words = range(len(tokenizer) - len(WORDS), len(tokenizer))
    suppressed = [i for i in range(len(tokenizer)) if i not in words]
    model.generation_config = GenerationConfig(**ids, suppress_tokens=suppressed)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    check_captioner(CaptionerConfig(str(tmp_path)))
    with captioner(CaptionerConfig(str(tmp_path), caption_max_new_tokens=4)) as caption:
        texts = caption(pictures[:2])
    assert all(len(text.split()) == 4 and set(text.split()) <= set(WORDS) for text in texts)
