"""--train_batch_size auto: as many pictures at once as memory has room for, and the same learning."""

import pytest
import torch

from sdxl_lora.config.cli import load_config, to_yaml
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.performance import memory_budget as budget
from sdxl_lora.performance.device_memory import usable_bytes
from sdxl_lora.performance.memory_budget import GIB, OUTER, largest_batch, memory_level_of
from sdxl_lora.run.events import read_events
from sdxl_lora.training.batch_shape import compiled_before, settle, settle_compiling
from sdxl_lora.training.dry_run import plan_training
from tests.helpers.configs import flat_train_config
from tests.helpers.launch import launch
from tests.helpers.runs import assert_equal_weights, column, largest_difference, weights_of

FOUR = {"train_batch_size": "auto", "gradient_accumulation_steps": 4}
NEEDED = ["--output_dir", "run", "--train_data_dir", "data"]


def messages(run):
    return [event["text"] for event in read_events(run / "events.jsonl", "message")]


def assert_learned_the_same(run, plain):
    assert column(run, "loss") == pytest.approx(column(plain, "loss"), rel=1e-5)
    step = column(run, "step")[-1]
    assert largest_difference(weights_of(run, step), weights_of(plain, step)) < 1e-6


def test_the_most_pictures_that_fit_learn_what_others_do(train, train_config, tmp_path, monkeypatch):
    """The budget is what was counted for two; the plain run takes the four at once."""
    monkeypatch.setattr(budget, "CUDA_CONTEXT", 0.0)  # it is a hundred times what the tiny model takes
    plan = plan_training(train_config(**FOUR))
    level = memory_level_of(plan.config.compute, plan.config.optimizer)
    needed = plan.count(level, 2)
    assert plan.count(level, 1) < needed
    settings = {"max_train_steps": 2, "adam_epsilon": 1e-4}
    plain = train(**settings, train_batch_size=4, output_dir=str(tmp_path / "plain"))
    room = f"{(needed + 1) / GIB:.12f}"
    run = train(**settings, **FOUR, memory_budget=room, output_dir=str(tmp_path / "two"))
    said = "train_batch_size auto: 2 at once, 2 micro-steps; expects 0.0 GiB"
    assert any(text.endswith(said) for text in messages(run))
    assert next(read_events(run / "events.jsonl", "started"))["images_per_step"] == 4
    assert_learned_the_same(run, plain)


def test_where_the_count_errs_fewer_are_taken_and_nothing_is_lost(train, tmp_path, monkeypatch):
    """Without a budget, by this machine's free memory. The try before the first step leaves no trace."""
    halves = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "lora_dropout": 0.1, "train_text_encoder": True}
    plain = train(**halves, max_train_steps=2, output_dir=str(tmp_path / "plain"))
    tried = []

    def out_of_memory_at_four(point, number=None):
        if point == "rehearsal":
            tried.append(point)
            if len(tried) == 1:
                raise torch.OutOfMemoryError("a test")

    monkeypatch.setattr("sdxl_lora.training.train_step.fault_point", out_of_memory_at_four)
    run = train(**{**halves, **FOUR}, max_train_steps=2)
    assert "out of memory with 4 images at once: going on with 2" in messages(run) and len(tried) == 2
    assert_equal_weights(weights_of(run, 2), weights_of(plain, 2))
    again = train(**halves, max_train_steps=3)
    assert column(again, "step") == [1, 2, 3], "the split may be another one on resume"


def test_processes_take_what_fits_on_all_of_them(train, train_config, tmp_path):
    settings = {"max_train_steps": 3, "adam_epsilon": 1e-4}
    plain = train(**settings, train_batch_size=4, output_dir=str(tmp_path / "plain"))
    config = train_config(**settings, train_batch_size="auto", gradient_accumulation_steps=2)
    codes, printed = launch(config, tmp_path / "log", world_size=2, TRAINER_FAULT="oom@rehearsal=1,rank=1")
    assert codes == [0, 0], printed
    assert "out of memory with 2 images at once: going on with 1" in printed
    assert_learned_the_same(tmp_path / "run", plain)


def test_a_rung_is_chosen_before_pictures_at_once(train_config):
    """Recomputing costs a third of the time, few pictures at once less: they never push a training down the ladder."""
    config = train_config(train_batch_size="auto", gradient_accumulation_steps=12, memory_budget="1GB")
    plan = plan_training(config)
    assert plan.shape.micro_batch == 12 and "12 x 1 micro-steps" in plan.of_steps()[0]

    def count(level, batch):
        return {"none": 400, OUTER: 300, "all": 100}[level.recomputed] + 10 * batch

    for room, recomputed, images in ((460, "none", 6), (411, "none", 1), (345, OUTER, 4), (309, "all", 12)):
        settled, shape = settle(config, count, room, lambda _: None)
        assert memory_level_of(settled.compute, settled.optimizer).recomputed == recomputed
        assert (shape.micro_batch, shape.micro_steps) == (images, 12 // images)
    assert largest_batch(12, lambda batch: 100 + batch, 50) == 1, "one is tried, whatever was counted"


def test_the_dry_run_says_that_another_machine_decides(train_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = plan_training(train_config(**FOUR))
    assert plan.shape.micro_batch == 1 and "settled where there is a GPU" in plan.notes[-1]


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    alone = usable_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 0 < usable_bytes(torch.device("cpu")) < 0.6 * alone


def test_auto_is_a_value_of_the_flag_and_of_the_file(tmp_path):
    flags = [*NEEDED, "--gradient_accumulation_steps", "8"]
    config = load_config(TrainConfig, [*flags, "--train_batch_size", "auto"])
    assert (config.batch.train_batch_size, config.batch.images_per_process) == ("auto", 8)
    assert load_config(TrainConfig, [*flags, "--train_batch_size", "2"]).batch.images_per_process == 16
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert load_config(TrainConfig, ["--config", str(tmp_path / "run.yaml")]) == config


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"train_batch_size": "atuo"}, "train_batch_size is 'atuo', it must be a whole number above 0, or auto"),
        ({"train_batch_size": 0}, "train_batch_size is 0, it must be a whole number above 0, or auto"),
        ({"train_batch_size": "auto"}, "say how many a step has, e.g. --gradient_accumulation_steps 8"),
        ({**FOUR, "dataset_streaming": True, "max_train_steps": 1}, "auto does not go with dataset_streaming"),
    ],
)
def test_what_auto_cannot_be_is_refused(settings, words, capsys):
    with pytest.raises(ConfigError, match=words):
        flat_train_config(output_dir="run", train_data_dir="data", **settings)
    with pytest.raises(SystemExit) as ended:
        load_config(TrainConfig, [*NEEDED, "--train_batch_size=atuo"])
    assert ended.value.code == 2 and "auto" in capsys.readouterr().err


@pytest.mark.gpu
def test_what_is_usable_of_a_gpu_heeds_its_limit():
    device = torch.device("cuda")
    _, total = torch.cuda.mem_get_info(device)
    try:
        torch.cuda.set_per_process_memory_fraction(0.1)
        limited = usable_bytes(device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 0.08 * total < limited < 0.1 * total + GIB


def test_auto_compiles_where_it_pays_and_says_why(train_config, monkeypatch):
    def settled(device="cuda", has_compiler=True, images=20_000, before=None, **settings):
        said = []
        config = train_config(**settings)
        pixels = images * 1024**2
        return settle_compiling(config, device, has_compiler, pixels, before, said.append).compute.compile, said

    assert settled() == ("on", [
        "compile auto: on, a training long enough to win back the time compiling takes: 20,972 of 10,000 million pixels"
    ])  # fmt: skip
    assert settled(images=1500) == ("off", [
        "compile auto: off, too short a training to win back the time compiling takes: 1,573 of 10,000 million pixels"
    ])  # fmt: skip
    assert settled(images=1500, before=True) == ("on", ["compile auto: on, as in the run being resumed"])
    assert settled(before=False) == ("off", ["compile auto: off, as in the run being resumed"])
    choice, (said,) = settled(before=True, stream_base=True)
    assert choice == "off" and "stream_base moves weights" in said
    assert settled(has_compiler=False) == ("off", ["compile auto: off, Triton, which compiles, is not installed"])
    assert settled("xpu") == ("off", ["compile auto: off, not tried on xpu"])
    assert settled("cpu") == ("off", [])
    choice, (said,) = settled(deterministic=True)
    assert choice == "off" and "deterministic is on" in said
    monkeypatch.setattr("torch.version.hip", "7.0")
    assert settled() == ("off", ["compile auto: off, not tried on ROCm"])


def test_a_run_goes_on_compiled_or_not_as_it_began(train_config, tmp_path, monkeypatch):
    """By its config.yaml, where earlier versions wrote true and false; flags of both kinds still say on and off."""
    config = train_config()
    assert compiled_before(config) is None
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.setattr("sdxl_lora.run.resume.newest_checkpoint", lambda folder: folder / "checkpoint-1")
    for recorded, expected in (("true", True), ("false", False), ("'on'", True), ("'off'", False), ("auto", False)):
        (tmp_path / "run" / "config.yaml").write_text(f"compile: {recorded}")
        assert compiled_before(config) is expected
    for flags, choice in (([], "auto"), (["--compile"], "on"), (["--no_compile"], "off"), (["--compile", "on"], "on")):
        assert load_config(TrainConfig, [*NEEDED, *flags]).compute.compile == choice
