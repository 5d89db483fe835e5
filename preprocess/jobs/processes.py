"""The processes that prepare one dataset together: one alone, or all that `accelerate launch` started."""

import os
from datetime import timedelta
from typing import TypeVar

from sdxl_lora.errors import ConfigError

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(days=7)  # a process may caption for days while another has finished its share


class Team:
    """This process and its peers.

    Attributes:
        rank, world: index of this process, and number of all; local_world: number on this machine.
    """

    def __init__(self) -> None:
        self.rank, self.world, self.state = 0, 1, None
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if (launched := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            from sdxl_lora.distributed.rendezvous import INIT_METHOD

            on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
            self.state = PartialState(cpu=on_cpu, init_method=INIT_METHOD, timeout=LONGEST_WAIT)
            self.rank, self.world = self.state.process_index, self.state.num_processes
            if self.world != launched:
                raise ConfigError(
                    f"{launched} processes were started, but Accelerate sees {self.world}: without a GPU, set "
                    "ACCELERATE_USE_CPU=true"
                )

    def share(self, items: list[Item]) -> list[Item]:
        return items[self.rank :: self.world]

    def gather(self, items: list[Item]) -> list[Item]:
        """Return the items of all processes, in the order of their ranks, in every process."""
        if self.world == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def wait(self) -> None:
        if self.state:
            self.state.wait_for_everyone()

    def close(self) -> None:
        if self.state:
            self.state.destroy_process_group()
