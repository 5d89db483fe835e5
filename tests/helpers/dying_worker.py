"""Workers that the system kills at one image; a module of its own, so that workers need not import pytest."""

import os
import time

from preprocess.images import workers

prepared_or_refused = workers.prepared_or_refused


def die_at_3(job):
    return os._exit(9) if job.name == "3.png" else prepared_or_refused(job)


def prepare_and_die_at_3(job):
    """Call workers.prepare_under_name in a process where nothing was patched yet."""
    workers.prepared_or_refused = die_at_3
    return prepare_under_name(job)


prepare_under_name = workers.prepare_under_name


class FaultyImages:
    """An ImageDataset at whose third image a process dies or hangs."""

    def __init__(self, images, fault):
        self.images, self.fault, self.examples = images, fault, images.examples

    def __len__(self):
        return len(self.images)

    def load(self, index, flip=False):
        if index == 2:
            os._exit(9) if self.fault == "die" else time.sleep(600)
        return self.images.load(index, flip)
