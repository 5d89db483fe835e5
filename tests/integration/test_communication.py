"""Traffic between two processes: the gradients of the adapter once a step, a few numbers, and nothing else."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.run.events import read_events
from tests.helpers.launch import launch
from tests.helpers.machines import two_machines, why_not

STEPS = 4


def count_bytes():
    """In a process that is about to train: write every collective of its steps to the file COUNTED.<rank>."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    from sdxl_lora.training.train_step import TrainStep

    counted = []
    init, do = DistributedDataParallel.__init__, TrainStep.__call__

    def init_in_python(self, *args, **options):
        """DDP's own all-reduce is out of Python's sight; its equal as a hook is not."""
        init(self, *args, **options)
        assert options["gradient_as_bucket_view"] and "find_unused_parameters" not in options
        assert str(options.get("static_graph", False)) == os.environ["STATIC"]
        self.register_comm_hook(None, allreduce_hook)

    DistributedDataParallel.__init__ = init_in_python

    def counting(collective):
        def call(*args, **options):
            tensors = [value for value in (*args, *options.values()) if isinstance(value, torch.Tensor)]
            counted.append(max((tensor.nbytes for tensor in tensors), default=0))
            return collective(*args, **options)

        return call

    for name in ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_object", "gather"):
        setattr(dist, name, counting(getattr(dist, name)))

    def do_and_write(self, *of_step):
        counted.clear()
        do(self, *of_step)
        with open(f"{os.environ['COUNTED']}.{os.environ['RANK']}", "a", encoding="utf-8") as file:
            file.write(json.dumps(counted) + "\n")

    TrainStep.__call__ = do_and_write


@pytest.mark.parametrize("micro_steps, text", [(1, False), (2, True)])
def test_a_step_sends_the_gradients_once_and_a_few_numbers(train_config, tmp_path, micro_steps, text):
    config = train_config(
        rank=16,
        max_train_steps=STEPS,
        gradient_accumulation_steps=micro_steps,
        train_text_encoder=text,
        mixed_precision="no" if text else "bf16",  # there gradients are cast before they are sent
    )
    environment = {"COUNTED": str(tmp_path / "counted"), "STATIC": str(micro_steps == 1)}
    codes, printed = launch(config, tmp_path / "log", world_size=2, first=count_bytes, **environment)
    assert codes == [0, 0], printed
    state = load_file(tmp_path / "run" / f"checkpoint-{STEPS}" / "lora_state.safetensors")
    adapter_bytes = sum(tensor.nbytes for tensor in state.values())
    for rank in (0, 1):
        steps = [json.loads(line) for line in (tmp_path / f"counted.{rank}").read_text().splitlines()]
        assert len(steps) == STEPS
        for counted in steps:
            assert 0 <= sum(counted) - adapter_bytes < 100, "the losses, whole and by timestep"
            assert len(counted) <= 4


def change_the_base_on_rank_1():
    from sdxl_lora.training import model

    load_unet = model.load_unet

    def changed(*args):
        unet = load_unet(*args)
        if os.environ["RANK"] == "1":
            with torch.no_grad():
                unet.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] += 1e-3
        return unet

    model.load_unet = changed


def test_processes_with_different_bases_are_refused(train_config, tmp_path):
    config = train_config(stream_base=True)  # else its weights are there all the while
    codes, printed = launch(config, tmp_path / "log", world_size=2, first=change_the_base_on_rank_1)
    assert codes == [2, 2]
    assert printed.count("error: ranks [1] have read a different base from rank 0") == 2


def test_the_frozen_base_does_not_cross_the_network(train_config, tiny_base, tmp_path):
    """By what a network device counts: a start sends less than the base, a step the gradients."""
    if reason := why_not():
        pytest.skip(reason)
    base_bytes = (tiny_base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    sent = {}
    with two_machines() as machines:
        for steps in (1, 1, 21):
            before = machines[0].bytes_sent()
            config = train_config(rank=16, max_train_steps=steps, output_dir=str(tmp_path / f"run{steps}.{len(sent)}"))
            codes, printed = launch(config, tmp_path / "log", machines=machines)
            assert codes == [0, 0], printed
            sent[steps] = machines[0].bytes_sent() - before
    parameters = next(read_events(tmp_path / "run21.1" / "events.jsonl", "started"))["parameters"]
    step_bytes = (sent[21] - sent[1]) / 20
    print(f"start {sent[1]}, step {step_bytes}, base {base_bytes}, adapter {4 * parameters}")
    assert sent[1] < 0.6 * base_bytes
    assert 4 * parameters < step_bytes < 1.15 * 4 * parameters
