"""What a training shows of itself: the loss on held-out pictures, samples, and at the end what it leaves for a person.

Reads the config, as parts.py does; the loop that says when is train_sdxl_lora.py.
"""

import shlex
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import torch
from PIL import Image

from sdxl_lora.distributed.collectives import all_raise_what_one_raises, main_process_decides
from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.export import thumbnail_jpeg, write_lora_files
from sdxl_lora.lora.formats.metadata import lora_metadata, public_name
from sdxl_lora.performance.device_memory import free_memory
from sdxl_lora.publish.hub import UploadError, published_files, upload
from sdxl_lora.publish.results import best_lora, deliver, last_words, write_card
from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.logger import Journal
from sdxl_lora.run.trackers import log_lora
from sdxl_lora.sampling.generate import are_drawn, draw_grid, draw_samples, read_samples, spread, to_picture
from sdxl_lora.sampling.similarity import Similarity
from sdxl_lora.training.best import Best
from sdxl_lora.training.ema import schedule_free_average
from sdxl_lora.training.fitting import Fitted
from sdxl_lora.training.measures import means_by_timestep
from sdxl_lora.training.settings import repository_of, settings_to_show, trigger_words_of
from sdxl_lora.training.validation import validation_batch, validation_sums

SIMILARITY_REFERENCES = 100  # training pictures that samples are compared with


class Watched(Fitted):
    """After `done_steps` of a training's steps."""

    journal: Journal
    done_steps: int
    base_hash: str
    repository: str | None

    def __init__(self, config, accelerator, run, stop):
        super().__init__(config, accelerator, run, stop)
        self.started_at = datetime.now(timezone.utc)
        self.best = Best(config.evaluation.early_stopping_min_delta, config.evaluation.early_stopping_patience)
        self.newest_sample: Image.Image | None = None
        self.similarity: Similarity | None = None  # on the main process

    def load_similarity(self) -> None:
        if self.config.evaluation.similarity_model:
            self.similarity = Similarity(self.config.evaluation.similarity_model)

    def claim_repository(self) -> str | None:
        """The Hub's repository to upload to. A run that goes on is not kept from it by a Hub that it needs at the end.

        Raises:
            ConfigError: a new run may not upload.
        """
        try:
            return repository_of(self.config)
        except ConfigError as error:
            if not checkpoints(self.run.folder):
                raise
            self.notes.append(f"{error}. Going on; the upload is tried at the end")
            return self.config.publish.hub_model_id or self.config.lora_name

    def look_again(self) -> None:
        """Validate and draw before the first step, and after a kill what should have been by now."""
        step = self.done_steps
        is_time = step == 0 or self.is_time_to_look((self.batches.epoch_of(step - 1), self.batches.epoch_of(step)))
        if is_time and (step == 0 or self.best.measured_step != step):
            self.validate()
        folder, number = self.run.folder / "samples", self.config.evaluation.num_validation_images
        if is_time and not main_process_decides(
            self.accelerator, lambda: step and are_drawn(folder, step, self.prompts, number)
        ):
            self.draw()

    def is_time_to_look(self, epochs: tuple[int, int]) -> bool:
        """Is something to be shown after the step that took the finished epochs from epochs[0] to epochs[1]?"""
        if not (self.prompts or self.held_out):
            return False
        every_n_epochs = None if self.config.evaluation.validation_steps else self.config.evaluation.validation_epochs
        return self.is_due(epochs, every_n_epochs, self.config.evaluation.validation_steps)

    def is_due(self, epochs: tuple[int, int], every_n_epochs: int | None, every_n_steps: int | None = None) -> bool:
        """After the step that took the number of finished epochs from epochs[0] to epochs[1]; always at the end."""
        by_steps = every_n_steps is not None and self.done_steps % every_n_steps == 0
        by_epochs = every_n_epochs is not None and epochs[1] // every_n_epochs > epochs[0] // every_n_epochs
        return by_steps or by_epochs or self.done_steps == self.total_steps

    def export(self, folder: Path) -> list[Path]:
        """Write the LoRA files of the present weights."""
        config = self.config
        captions = [example.caption for example in self.examples]
        about = lora_metadata(
            config.lora_name,
            started_at=self.started_at,
            finished_at=datetime.now(timezone.utc),
            trigger_phrase=", ".join(trigger_words_of(config)),
            resolution=self.sample_size()[::-1],
            rank=config.adapter.rank,
            alpha=config.adapter.lora_alpha or config.adapter.rank,
            base_model=self.base.path,
            base_model_sha256=self.base_hash,
            thumbnail_jpeg=thumbnail_jpeg(self.newest_sample) if self.newest_sample else b"",
            epochs=self.batches.epoch_of(self.done_steps),
            steps=self.done_steps,
            seed=config.seed,
            learning_rate=config.optimizer.learning_rate,
            images=self.batches.pictures,
            tag_frequency=Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()),
            prediction_type=self.schedule.config.prediction_type,
        )
        with self.weights_to_show():
            return write_lora_files(folder, config.lora_name, self.models, config.output.save_precision, about)

    def weights_to_show(self):
        """A context in which the adapter holds the weights that samples and LoRA files are made of."""
        return self.ema.shown() if self.ema else schedule_free_average(self.optimizer.optimizer, self.parameters)

    def draw(self) -> None:
        """Draw the validation prompts with the LoRA as it is, the processes sharing the work."""
        if not self.prompts:
            return
        accelerator, step, images = self.accelerator, self.done_steps, self.config.evaluation.num_validation_images
        self.run.update(state="sampling")
        folder = self.run.folder / "samples"
        try:
            with all_raise_what_one_raises(accelerator), accelerator.autocast(), self.weights_to_show():
                draw_samples(
                    self.bare_unet,
                    self.vae,
                    self.sampling_schedule,
                    self.prompts,
                    self.texts.read,
                    images,
                    self.guidance_rescale,
                    folder,
                    step,
                    accelerator.process_index,
                    accelerator.num_processes,
                    self.stop.reason,
                )
        except torch.OutOfMemoryError as error:  # a picture is not worth a training
            free_memory()
            self.journal.say(f"out of memory while drawing samples at step {step}, going on ({error})")
        main_process_decides(accelerator, lambda: self.show(folder, step, images))
        self.journal.skip_time()

    def show(self, folder: Path, step: int, images: int) -> None:
        """Give the samples of a step to the trackers. On the main process, which may take its time."""
        pictures = read_samples(folder, step, len(self.prompts), images)
        self.newest_sample = next((image for of_prompt in pictures for image in of_prompt), None)
        self.journal.samples(step, self.prompts, pictures, draw_grid(folder, step, self.prompts, images))
        if self.similarity and self.newest_sample:
            try:
                self.journal.similarity(step, self.similarities(pictures))
            except torch.OutOfMemoryError as error:  # nor is a number
                free_memory()
                self.journal.say(f"out of memory while measuring similarity at step {step}, going on ({error})")

    def similarities(self, pictures: list[list[Image.Image]]) -> dict[str, float]:
        """Of the samples to the pictures that train."""
        device, held_out = self.accelerator.device, set(self.held_out)
        if self.similarity.references is None:
            trained = [i for i, e in enumerate(self.examples) if not e.is_class_image and i not in held_out]
            shown = spread(trained, SIMILARITY_REFERENCES)
            self.similarity.refer_to([to_picture(self.pictures.load(index)["pixels"]) for index in shown], device)
        return self.similarity.of_samples(self.prompts, pictures, device)

    def validate(self) -> bool:
        """Report the loss on the held-out pictures, the processes sharing the work; not if asked to stop meanwhile.

        Returns:
            whether it is the lowest so far; the base alone does not compete.
        """
        if not self.held_out:
            return False
        accelerator, steps = self.accelerator, len(self.schedule.betas)

        def batches():
            for index in self.held_out[accelerator.process_index :: accelerator.num_processes]:
                if self.stop.reason():
                    return
                batch = validation_batch(index, self.examples, self.latents, self.texts, self.config.seed, steps)
                yield {name: tensor.to(accelerator.device) for name, tensor in batch.items()}

        with all_raise_what_one_raises(accelerator), accelerator.autocast(), self.weights_to_show():
            sums = validation_sums(self.bare_unet, self.schedule, batches())
        sums = accelerator.reduce(sums, "sum")
        self.journal.skip_time()
        if sums[1].min() < len(self.held_out):
            return False
        loss = (sums[0] / sums[1]).mean().item()
        self.journal.validation(self.done_steps, loss, means_by_timestep(sums, steps))
        if not (self.done_steps and self.best.update(self.done_steps, loss)):
            return False
        self.run.event("best", step=self.done_steps, validation_loss=loss, checkpoint=self.best.checkpoint)
        self.run.update(best_checkpoint=self.best.checkpoint)
        return True

    def finish(self) -> None:
        """Write the LoRA files and say where they are. On the main process, which may take its time."""
        config, folder, base, step = self.config, self.run.folder, self.base.path, self.done_steps
        trigger_word = ", ".join(trigger_words_of(config))
        best = best_lora(folder, self.best.checkpoint, config.lora_name, self.journal.say)
        loras = self.export(folder) + best
        files = loras + deliver(
            loras[0], base, trigger_word, step, config.output.save_side_files, config.output.loras_dir
        )
        settings = settings_to_show(config) | {"steps": step, "pictures": len(self.examples)}
        if best:
            settings["lowest validation loss"] = f"{self.best.loss:.4f}, of step {self.best.step}: {best[0].name}"
        write_card(folder, config.lora_name, base, trigger_word, self.prompts, step, settings, self.repository)
        about = {**settings, "trigger_word": trigger_word, "base_model": public_name(base), "best_step": self.best.step}
        log_lora(self.accelerator.trackers, config.lora_name, loras, about)
        self.run.event("finished", step=step, best_step=self.best.step, files=[str(path) for path in files])
        if self.best.is_given_up:
            self.journal.say(f"ended at step {step}: {self.best.waited} validation losses in a row were not lower")
        self.journal.bar.close()
        print(last_words(files, config.lora_name, trigger_word, folder / "samples", self.best.step, self.best.loss))
        if self.repository:
            self.publish()

    def publish(self) -> None:
        """Upload to the Hub. What fails here costs no more than the upload."""
        folder, repository = self.run.folder, self.repository
        try:
            address = upload(folder, repository)
        except UploadError as error:
            again = f"python -m sdxl_lora.publish.hub {shlex.quote(str(folder))} {repository}"
            self.journal.say(f"{error}. The files are in {folder}; try again with: {again}")
            return
        self.run.event("published", address=address, files=published_files(folder))
        print(f"uploaded to {address}")
