"""Batches that grow while memory allows, and captions that do not depend on them."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from preprocess.captions import captioner as caption_module
from preprocess.captions.batch_size import MOST_ON_CPU, MOST_ON_GPU, after_fit, first_and_most, with_memory_share
from preprocess.captions.captioner import captioner, device_and_dtype
from sdxl_lora.config.sections.preprocess import CaptionerConfig
from tests.helpers.preparing import noise, rows_of
from tests.helpers.preparing import preprocess as run_preprocess


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


def test_a_batch_that_does_not_fit_is_halved_and_never_grows_again(tiny_florence2, images, monkeypatch):
    sizes = fake_gpu(monkeypatch, holds=2)
    with captioner(CaptionerConfig(str(tiny_florence2), caption_batch_size=5)) as caption:
        assert caption(images) == [str(image.getpixel((0, 0))) for image in images]
        assert caption(images[:2]) == [str(image.getpixel((0, 0))) for image in images[:2]]
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


def test_one_picture_that_does_not_fit_is_out_of_memory(tiny_florence2, images, monkeypatch):
    fake_gpu(monkeypatch, holds=0)
    with captioner(CaptionerConfig(str(tiny_florence2))) as caption, pytest.raises(torch.OutOfMemoryError):
        caption(images)


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


@pytest.mark.parametrize(("kind", "share", "most"), [("cuda", 0.5, 64), ("xpu", 0.5, 64), ("mps", 0, 8), ("cpu", 0, 8)])
def test_each_device_is_asked_for_what_it_can_tell(monkeypatch, kind, share, most):
    assert (MOST_ON_GPU, MOST_ON_CPU) == (64, 8)
    told = SimpleNamespace(
        memory_allocated=lambda device: 2,
        mem_get_info=lambda device: (7, 16),
        memory_reserved=lambda device: 5,
        reset_peak_memory_stats=lambda device: None,
        max_memory_allocated=lambda device: 7,
    )
    devices = {"cuda": told, "xpu": told}
    monkeypatch.setattr(torch, "get_device_module", lambda device: devices[device.type])
    assert with_memory_share(lambda: ["a cat"], torch.device(kind)) == (["a cat"], share)
    assert first_and_most(None, kind) == (1, most)


@pytest.mark.parametrize(
    ("kind", "is_native", "expected"),
    [
        ("cuda", True, ("cuda:1", torch.bfloat16)),
        ("xpu", False, ("xpu:1", torch.float16)),
        ("mps", True, ("mps", torch.bfloat16)),
        ("cpu", True, ("cpu", torch.float32)),
    ],
)
def test_captions_are_written_on_the_device_that_trains(monkeypatch, kind, is_native, expected):
    monkeypatch.setattr("sdxl_lora.distributed.accelerator.device_here", lambda: torch.device(kind))
    monkeypatch.setattr("sdxl_lora.performance.compute.native_bfloat16", lambda device: is_native)
    monkeypatch.setenv("LOCAL_RANK", "1")
    device, dtype = device_and_dtype("auto")
    assert (str(device), dtype) == expected
    assert device_and_dtype("float16")[1] == torch.float16
