"""The parts of a training, each by itself."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest


def forget_accelerators():
    """Reset Accelerate's state, of which a process has one, for a test that makes an accelerator."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def build(train_config):
    """Function from settings to what `train` makes before it watches or steps, under the same names."""
    from sdxl_lora.distributed.accelerator import make_accelerator
    from sdxl_lora.models.loading import base_of
    from sdxl_lora.optimizers.optimizers import build_optimizer
    from sdxl_lora.run.logger import RunLogger
    from sdxl_lora.run.session import Run
    from sdxl_lora.training.batch_shape import BatchShape
    from sdxl_lora.training.data import prepare_data
    from sdxl_lora.training.ema import published_weights
    from sdxl_lora.training.model import build_model

    with ExitStack() as runs:

        def make(**settings) -> SimpleNamespace:
            forget_accelerators()
            config = train_config(**settings)
            accelerator = make_accelerator(config.compute, config.batch, config.logging, config.output_dir)
            run = runs.enter_context(Run(config.run_dir))
            logger = RunLogger(accelerator, run)
            base = base_of(config.model)
            data = prepare_data(config, base, accelerator, run, logger)
            model = build_model(config, base, data.text, accelerator, logger.info)
            optimizer = build_optimizer(config.optimizer, model, data.total_steps, accelerator)
            shown = published_weights(config.optimizer.ema_decay, model.adapter_parameters(), optimizer.optimizer)
            run.event("started")  # earlier events wait for it
            return SimpleNamespace(
                config=config, accelerator=accelerator, run=run, logger=logger, base=base, data=data, model=model,
                optimizer=optimizer, shown=shown, shape=BatchShape.of(config.batch),
            )  # fmt: skip

        yield make
