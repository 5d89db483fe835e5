"""LoRA files of a training, with its facts in their metadata."""

from datetime import datetime, timezone
from pathlib import Path

from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.lora.export import thumbnail_jpeg, write_lora_files
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.models.base_source import Base
from sdxl_lora.training.data import TrainingData
from sdxl_lora.training.ema import PublishedWeights
from sdxl_lora.training.model import LoraModel
from sdxl_lora.training.samples import SampleWriter


class LoraExporter:
    """Writer of the LoRA files of the current weights, into each checkpoint and at the end."""

    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        base_sha256: str,
        model: LoraModel,
        shown: PublishedWeights,
        data: TrainingData,
        samples: SampleWriter,
    ):
        self.config, self.base, self.base_sha256 = config, base, base_sha256
        self.model, self.shown, self.data, self.samples = model, shown, data, samples
        self.started_at = datetime.now(timezone.utc)

    def write(self, folder: Path, step: int) -> list[Path]:
        """Write the files of the weights after `step` steps; see `write_lora_files`."""
        config, data, newest = self.config, self.data, self.samples.newest
        metadata = lora_metadata(
            config.lora_name,
            started_at=self.started_at,
            finished_at=datetime.now(timezone.utc),
            trigger_phrase=", ".join(trigger_words_of(config.data)),
            resolution=data.sample_size[::-1],
            base_model=self.base.path,
            base_model_sha256=self.base_sha256,
            thumbnail_jpeg=thumbnail_jpeg(newest) if newest else b"",
            epochs=data.sampler.epoch_of(step),
            steps=step,
            seed=config.seed,
            learning_rate=config.optimizer.learning_rate,
            images=data.sampler.images,
            tag_frequency=data.tag_frequency(),
            prediction_type=self.model.scheduler.config.prediction_type,
            flow_shift=getattr(self.model.scheduler.config, "shift", None),
        )
        with self.shown.shown(), self.model.base_at_hand():  # the base is needed to find a DoRA's nearest LoRA
            return write_lora_files(
                folder, config.lora_name, self.model.components, config.output.save_precision, metadata
            )

    def save(self, folder: Path, step: int) -> None:
        self.write(folder, step)

    def load(self, folder: Path) -> None:
        """Do nothing: the adapters' own state is exact, and these files are for clients."""
