"""Two processes that keep in step: equal results for every split, equal collectives, and patience with each other."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.events import read_events
from tests.helpers.launch import launch
from tests.helpers.recorded_batches import met, note_what_is_met

TIMEOUT = 4
LOOKING = {
    "validation_prompt": ("a cat",), "num_validation_images": 3, "validation_inference_steps": 1,
    "validation_split": 0.25,
}  # fmt: skip


def test_every_split_of_a_step_gives_the_same(train_config, five_of_two_sizes, tmp_path):
    """One process of batch 4, two of 2, one of 2 with two micro-steps; two sizes, short last steps, own caches.

    Validation on two pictures too, of which each of two processes does one.
    """
    splits = {"one": (1, 4, 1), "two": (2, 2, 1), "micro": (1, 2, 2)}
    for name, (world_size, batch, micro_steps) in splits.items():
        config = train_config(
            train_data_dir=None, dataset_name=str(five_of_two_sizes), max_train_steps=None, num_train_epochs=5,
            validation_split=0.4, validation_epochs=2,
            adam_epsilon=1e-4, random_flip=True, lr_scheduler="cosine", train_batch_size=batch,
            gradient_accumulation_steps=micro_steps, output_dir=str(tmp_path / name),
            cache_dir=str(tmp_path / f"cache {name}"),
        )  # fmt: skip
        codes, printed = launch(
            config, tmp_path / "log", world_size, first=note_what_is_met, MET=str(tmp_path / f"met by {name}")
        )
        assert codes == [0] * world_size, printed
    steps = met(tmp_path / "met by one")
    assert all(met(tmp_path / f"met by {name}") == steps for name in splits)
    assert {len(of_step) for of_step in steps.values()} >= {1, 4}, "whole steps and short ones"
    one, *others = (list(read_events(tmp_path / name / "events.jsonl", "step")) for name in splits)
    assert len({len(steps) for steps in (one, *others)}) == 1 and len(one) > 3
    for other in others:
        assert [step["learning_rate"] for step in other] == [step["learning_rate"] for step in one]
        assert [step["loss"] for step in other] == pytest.approx([step["loss"] for step in one], rel=1e-5)
    losses = [
        [event["validation_loss"] for event in read_events(tmp_path / name / "events.jsonl", "validation")]
        for name in splits
    ]
    assert len(losses[0]) > 2 and all(other == pytest.approx(losses[0], rel=1e-5) for other in losses[1:])
    weights = [load_file(checkpoints(tmp_path / name)[-1] / "lora_state.safetensors") for name in splits]
    for other in weights[1:]:
        assert max((weights[0][key] - other[key]).abs().max() for key in other) < 1e-6
    caches = [{p.name: load_file(p) for p in (tmp_path / f"cache {n}").rglob("*.safetensors")} for n in splits]
    assert caches[0].keys() == caches[1].keys()
    for name, record in caches[0].items():
        assert all(torch.equal(tensor, caches[1][name][key]) for key, tensor in record.items())


def note_collectives():
    """In a process that is about to train: write the name of every collective to the file NOTED.<rank>."""
    import torch.distributed as dist

    file = open(f"{os.environ['NOTED']}.{os.environ['RANK']}", "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def noting(name, collective):
        def call(*args, **options):
            file.write(name + "\n")
            return collective(*args, **options)

        return call

    names = ["all_reduce", "reduce", "broadcast", "broadcast_object_list", "barrier", "gather", "scatter"]
    for name in (*names, "all_gather", "all_gather_into_tensor", "all_gather_object"):
        setattr(dist, name, noting(name, getattr(dist, name)))


@pytest.mark.parametrize(
    "fault, codes",
    [
        ("term@step=3,rank=1", [0, 0]),  # save, sample, validate, stop
        ("oom@sample=1,rank=1", [0, 0]),
        ("oom@checkpoint_file=2", [7, 7]),  # on the main process
        ("nan@step=3,rank=0", [6, 6]),
    ],
)
def test_both_processes_take_part_in_the_same_collectives(train_config, tmp_path, fault, codes):
    """Whatever happens to one of them: no collective hides in a branch of the main process."""
    config = train_config(max_train_steps=4, checkpointing_steps=2, **LOOKING)
    given, printed = launch(
        config,
        tmp_path / "log",
        world_size=2,
        first=note_collectives,
        NOTED=str(tmp_path / "noted"),
        TRAINER_FAULT=fault,
    )
    assert given == codes, printed
    noted = [(tmp_path / f"noted.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert noted[0] == noted[1] and len(noted[0]) > 20


def test_a_main_process_that_dies_while_the_other_waits_for_it_is_named(train_config, tmp_path):
    config = train_config(max_train_steps=4, **{**LOOKING, "num_validation_images": 1})
    codes, printed = launch(config, tmp_path / "log", world_size=2, TRAINER_FAULT="kill9@sample=1,rank=0")
    assert codes == [-signal.SIGKILL, 8], printed
    assert "rank 0 is gone" in printed and "Traceback" not in printed


def take_long():
    """In a process that is about to train: what only one process does takes long, the first time.

    The main process draws a picture, gives pictures to a tracker, writes a checkpoint, delivers, and uploads (here to
    nowhere; see test_hub.py); rank 1 validates.
    """
    import train_sdxl_lora
    from sdxl_lora.training import checkpointer, evaluator, finish, samples

    def let_take_long(module, name, rank):
        function, first = getattr(module, name), [os.environ["RANK"] == rank]

        def call(*args, **options):
            if first and first.pop():
                with open(os.environ["TOOK_LONG"], "a", encoding="utf-8") as file:
                    file.write(name + "\n")
                time.sleep(1.5 * TIMEOUT)  # there is no other way to be later than a timeout
            return function(*args, **options)

        setattr(module, name, call)

    train_sdxl_lora.claim_hub_repository, finish.upload = lambda *_: "me/cat", lambda *_: "nowhere"
    for module, name in (
        (samples, "generate_images"),
        (samples, "read_samples"),
        (finish, "deliver"),
        (finish, "upload"),
    ):
        let_take_long(module, name, "0")
    let_take_long(checkpointer, "save_tensors", "0")
    let_take_long(evaluator, "validation_sums", "1")


def test_one_process_may_work_longer_than_the_timeout(train_config, tmp_path):
    config = train_config(max_train_steps=2, process_timeout_seconds=TIMEOUT, validation_epochs=9, **LOOKING)
    noted = tmp_path / "took long"
    codes, printed = launch(config, tmp_path / "log", world_size=2, first=take_long, TOOK_LONG=str(noted))
    assert codes == [0, 0], printed
    slow = ["deliver", "generate_images", "read_samples", "save_tensors", "upload", "validation_sums"]
    assert sorted(noted.read_text().split()) == slow
    assert "uploaded to nowhere" in printed
