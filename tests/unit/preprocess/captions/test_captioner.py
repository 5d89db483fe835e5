"""Captioners: the real classes of several families at tiny size, and what is none."""

import gc
import weakref

import pytest
import torch
from transformers import AutoProcessor, Florence2ForConditionalGeneration, GenerationConfig

from examples.tiny_florence2 import WORDS, tiny_florence2_tokenizer
from preprocess.captions import captioner as caption_module
from preprocess.captions.captioner import captioner, check_captioner
from sdxl_lora.config.sections.preprocess import CaptionerConfig
from sdxl_lora.errors import ConfigError
from tests.helpers.preparing import noise
from tests.helpers.preparing import preprocess as run_preprocess


def test_florence_gives_what_its_own_classes_give(tiny_florence2, images):
    options = CaptionerConfig(str(tiny_florence2), caption_task="<CAPTION>", caption_max_new_tokens=12)
    with captioner(options) as caption:
        texts = caption(images)
    processor = AutoProcessor.from_pretrained(tiny_florence2)
    model = Florence2ForConditionalGeneration.from_pretrained(tiny_florence2)
    for text, image in zip(texts, images, strict=True):
        inputs = processor(images=[image], text=["<CAPTION>"], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, num_beams=3, do_sample=False)
        assert text == processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        assert len(text.split()) > 4 and "<" not in text


def test_the_task_reaches_the_model(tiny_florence2, images):
    texts = {}
    for task in ("<CAPTION>", "<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>"):  # the last is a fine-tune's own
        with captioner(CaptionerConfig(str(tiny_florence2), caption_task=task, caption_max_new_tokens=12)) as caption:
            texts[task] = tuple(caption(images))
    assert len(set(texts.values())) == 3


def test_the_captioner_leaves_memory(tiny_florence2, images, monkeypatch):
    seen = []
    describe = caption_module.describe
    monkeypatch.setattr(
        caption_module, "describe", lambda model, *rest: seen.append(weakref.ref(model)) or describe(model, *rest)
    )
    with captioner(CaptionerConfig(str(tiny_florence2), caption_max_new_tokens=4)) as caption:
        caption(images[:1])
        assert seen[0]() is not None
    gc.collect()
    assert seen[0]() is None


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


def test_another_family_of_captioners_is_served_too(tiny_blip, images):
    from transformers import BlipForConditionalGeneration

    check_captioner(CaptionerConfig(str(tiny_blip)))
    with captioner(CaptionerConfig(str(tiny_blip), caption_max_new_tokens=6)) as caption:
        texts = caption(images[:3])
    processor = AutoProcessor.from_pretrained(tiny_blip)
    model = BlipForConditionalGeneration.from_pretrained(tiny_blip).eval()
    for text, image in zip(texts, images, strict=False):
        tokens = model.generate(**processor(images=[image], return_tensors="pt"), max_new_tokens=6, num_beams=3)
        assert text == " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split())
    with captioner(CaptionerConfig(str(tiny_blip), caption_prompt="a photo of", caption_max_new_tokens=6)) as caption:
        assert all(text.startswith("a photo of") for text in caption(images[:2]))


def test_a_chat_model_is_asked_and_its_answer_is_the_caption(images, tmp_path):
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
        texts = caption(images[:2])
    for text, image in zip(texts, images, strict=False):
        inputs = processor(images=[image], text=["<image>What is it?"], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert text == " ".join(tokenizer.decode(tokens, skip_special_tokens=True).split()) and "What" not in text


def test_a_model_with_image_processor_and_tokenizer_apart_is_served(images, tmp_path):
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
        texts = caption(images[:2])
    assert all(len(text.split()) == 4 and set(text.split()) <= set(WORDS) for text in texts)
