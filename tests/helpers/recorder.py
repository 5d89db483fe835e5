"""A recorder of micro-steps without CUDA, see performance/cuda_graphs.py: a replay computes them again."""

import torch


class OnTheCpu:
    """Records the call itself. A capture raises `fault`; `skew` is added to the gradients of a replay."""

    def __init__(self, parameters, fault=None, skew=0.0):
        self.parameters, self.fault, self.skew = parameters, fault, skew
        self.captured = self.replayed = self.released = 0

    random_state, set_random_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)

    def warm_up(self, compute):
        compute()

    def capture(self, compute):
        if self.fault is not None:
            raise self.fault
        self.captured += 1
        losses = compute().detach()
        for parameter in self.parameters:
            parameter.grad.zero_()  # a capture computes nothing

        def replay():
            self.replayed += 1
            losses.copy_(compute().detach())
            for parameter in self.parameters:
                parameter.grad += self.skew

        return replay, losses

    def release(self):
        self.released += 1


def record_on_the_cpu():
    """Allow cuda_graphs on the CPU in a process that is about to train; it reports each recording."""
    from sdxl_lora.performance.cuda_graphs import RecordedMicroStep
    from sdxl_lora.training import checks, train_step

    def recorded(compute, parameters, report):
        recorder = OnTheCpu(parameters)
        step = RecordedMicroStep(compute, parameters, report, recorder)

        def call(batch):
            before, losses = recorder.captured, step(batch)
            if recorder.captured > before:
                report(f"recorded {recorder.captured}")
            return losses

        return call

    checks.check_device = lambda *_: None
    train_step.RecordedMicroStep = recorded
    train_step.TrainStep.make_room = lambda self: None
