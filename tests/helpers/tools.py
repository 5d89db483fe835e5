"""Helpers of the tools' tests: adapters of each kind in files, bases, and the command in this process."""

import pytest

from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.tools.__main__ import main
from tests.helpers.adapters import tiny_with_lora


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """{name: (pipeline with the adapter, its kohya file, its diffusers file)} in fp32."""
    made = {}
    for name, options in {
        "cat": {"targets": "all-linear+conv"},
        "dog": {"targets": "attention", "rank": 3, "alpha": 5},
        "dora": {"targets": "attention+ff", "use_dora": True},
        "loha": {"targets": "attention+ff", "kind": "loha", "rank": 2},
        "lokr": {"targets": "all-linear+conv", "kind": "lokr", "rank": 2},
    }.items():
        folder = tmp_path_factory.mktemp(name)
        pipeline, models = tiny_with_lora(**{"rank": 4, "alpha": 2, **options})
        about = lora_metadata(name, trigger_phrase=f"sks {name}")
        made[name] = (pipeline, *write_lora_files(folder, name, models, "fp32", about, merged_rank=512))
    return made


def run(*arguments):
    return main([str(argument) for argument in arguments])


def changes(path):
    return {key: delta(adapter) for key, adapter in read_lora(path).adapters.items()}


def assert_close(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    assert max((found[key] - expected[key]).abs().max().item() for key in expected) < tolerance
