"""Options of accelerate's config and the environment that this training ignores: one line each, and the run goes on."""

import os

import pytest

from sdxl_lora.distributed.accelerator import check_named_device
from sdxl_lora.distributed.launcher import set_aside, tell_launcher
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import read_events

MORE = "asks for more than is done here: "


def said(environment, mixed_precision="bf16", micro_steps=2):
    return [text.split(MORE)[-1] for text in set_aside(environment, mixed_precision, micro_steps)]


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not used: each process holds the whole model"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP is not used"),
        ({"ACCELERATE_USE_FSDP": "1"}, "FSDP is not used"),
        ({"ACCELERATE_USE_MEGATRON_LM": "True"}, "Megatron-LM is not used"),
        ({"ACCELERATE_USE_DEEPSPEED": "2"}, "DeepSpeed is not used"),
        ({"ACCELERATE_USE_FSDP": "y"}, "FSDP is not used"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "SageMaker's data parallelism is not used"),
        ({"ACCELERATE_DYNAMO_BACKEND": "nonsense"}, "TorchDynamo (nonsense) is not used"),
        ({"ACCELERATE_MIXED_PRECISION": "half"}, "mixed_precision half is not used"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"}, "gradient_accumulation_steps 0 is not used"),
        ({"LOCAL_RANK": "0"}, "has LOCAL_RANK=0 but not WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT: this process"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism config is not used"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "TorchDynamo (INDUCTOR) is not used: --compile"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision fp8 is not used: --mixed_precision bf16 applies"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, "gradient_accumulation_steps auto is not used"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--gradient_accumulation_steps 2 applies"),
        ({"RANK": "0"}, "has RANK=0 but not WORLD_SIZE"),
        ({"LOCAL_RANK": "0", "RANK": "0"}, "this process trains alone"),
        (
            {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
            "not MASTER_ADDR, MASTER_PORT: this process trains alone",
        ),
    ],
)
def test_each_is_told_in_one_line_and_set_aside(environment, words):
    before = dict(environment)
    [line] = said(environment)
    assert words in line and "\n" not in line
    assert not set(before) & set(environment) - {"FSDP_VERSION"} and said(environment) == []


def test_what_a_launcher_always_sets_says_nothing():
    usual = {
        "ACCELERATE_DYNAMO_BACKEND": "no",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_USE_CPU": "True",
    }
    assert said(dict(usual)) == []
    assert said({**usual, "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}) == []
    torchrun = {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip
    assert said({"RANK": "-1", "LOCAL_RANK": "-1", "WORLD_SIZE": "-1"}) == []
    assert said(dict(torchrun)) == [] and said({"WORLD_SIZE": "1"}) == []


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "1"}, "has RANK=1 but not WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "3"}, "has LOCAL_RANK=3 but not WORLD_SIZE, RANK"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, "but not MASTER_PORT"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0 in the environment, which is impossible"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "WORLD_SIZE is 2, RANK 2"),
        ({"MASTER_PORT": "auto", "RANK": "0"}, "MASTER_PORT is 'auto'"),
        ({"RANK": "zero"}, "RANK is 'zero' in the environment, it must be a whole number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "4"}, "has WORLD_SIZE=4 but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0.0"}, "RANK is '0.0'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999 in the environment, it must be from 1 to 65535"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "has RANK=1, WORLD_SIZE=2 but not LOCAL_RANK, MASTER_ADDR"),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "x"}, "RANK is 'x'"),
    ],
)
def test_processes_that_would_not_find_each_other_are_refused(environment, words):
    with pytest.raises(ConfigError) as raised:
        said(environment)
    assert words in str(raised.value) and "accelerate launch" in str(raised.value)


def test_processes_of_mpi_on_one_machine_find_each_other():
    """As accelerate reads OpenMPI's variables, though it does so without a GPU alone."""
    of_mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    environment = {**of_mpi, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert said(environment) == []
    taken = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert environment.items() >= {**taken, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items()
    alone = {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    assert said(alone) == [] and "RANK" not in alone
    by_torchrun = {**environment, **of_mpi, "RANK": "0"}
    assert said(by_torchrun) == [] and by_torchrun["RANK"] == "0"


def test_accelerates_flags_are_yes_or_no(monkeypatch):
    for value, meant in (("y", "true"), ("ON", "true"), ("f", "false"), ("", "false"), ("none", "false")):
        environment = {"ACCELERATE_USE_CPU": value}
        assert said(environment) == [] and environment["ACCELERATE_USE_CPU"] == meant
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"):
        with pytest.raises(ConfigError, match=f"{name} is 'maybe' in the environment, it must be true or false"):
            said({name: "maybe"})


@pytest.mark.parametrize("name", ["banana", "cuda:77", ""])
def test_a_device_that_is_not_here_is_named(monkeypatch, name):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", name)
    with pytest.raises(
        ConfigError, match=f"ACCELERATE_TORCH_DEVICE is '{name}' in the environment, which is not a device"
    ):
        check_named_device()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    check_named_device()


def test_a_run_goes_on_whatever_a_config_from_other_work_asks(train, monkeypatch):
    asked = {
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_MEGATRON_LM": "true",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_MIXED_PRECISION": "fp8", "RANK": "0",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto", "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    }  # fmt: skip
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning) as warned:
        run = train(max_train_steps=1, gradient_accumulation_steps=2)
    lines = [str(warning.message) for warning in warned]
    for words in ("DeepSpeed", "FSDP", "Megatron", "TorchDynamo", "fp8", "auto", "parallelism", "trains alone"):
        assert sum(words in line for line in lines) == 1, words
    assert len(list(read_events(run / "events.jsonl", "step"))) == 1 and "RANK" not in os.environ


def test_torchruns_table_ends_with_our_line(tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    path = str(tmp_path / "error.json")
    tell_launcher({"TORCHELASTIC_ERROR_FILE": path}, "error: no such base model: nowhere")
    table = str(ChildFailedError("train", {0: ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=path)}))
    assert table.strip().splitlines()[-2].strip() == "traceback : error: no such base model: nowhere"
    for environment in ({}, {"TORCHELASTIC_ERROR_FILE": ""}, {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "no" / "x")}):
        tell_launcher(environment, "error: nobody is to be told")
    assert [file.name for file in tmp_path.iterdir()] == ["error.json"]
