"""Drawing with a run's LoRA beside the base, as the page's Results tab asks for it."""

import numpy as np
import pytest
from PIL import Image

from sdxl_lora.errors import ConfigError
from webui.runs.compare import draw
from webui.runs.drawings import drawing_request, image_path
from webui.runs.listing import lora_files, stages


@pytest.fixture
def run(train):
    return train(max_train_steps=2, checkpointing_steps=1, learning_rate=0.2, train_text_encoder=True)


def test_base_weights_and_checkpoints_are_drawn_side_by_side_by_one_seed(run, tmp_path):
    assert list(stages(run)) == ["final", "checkpoint-2", "checkpoint-1"]
    assert [path.name for path in lora_files(run)] == ["run.safetensors", "pytorch_lora_weights.safetensors"]
    assert len(lora_files(run / "checkpoint-1")) == 2
    request = drawing_request(run, ["final", "checkpoint-1"], "a cat\na dog", "0 0.5 1", 7, 2, 5, 64)
    folder = tmp_path / "drawn"
    folder.mkdir()
    draw(request, folder)

    def pixels(prompt: int, stage: str, weight: float) -> np.ndarray:
        return np.asarray(Image.open(image_path(folder, prompt, stage, weight))).astype(int)

    assert len(list(folder.glob("*.png"))) == 2 * (1 + 2 * 3)
    for prompt in (0, 1):
        base = pixels(prompt, "", 0)
        assert base.shape == (64, 64, 3)
        assert (pixels(prompt, "final", 0) == base).all()
        distance = [np.abs(pixels(prompt, "final", weight) - base).mean() for weight in (0.5, 1)]
        assert 0 < distance[0] < distance[1]
        assert (pixels(prompt, "checkpoint-1", 1) != pixels(prompt, "final", 1)).any()
    assert (pixels(0, "", 0) != pixels(1, "", 0)).any()

    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="checkpoint-9 of run is no longer there: choose another"):
        draw(request | {"stages": ["final", "checkpoint-9"]}, tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []
