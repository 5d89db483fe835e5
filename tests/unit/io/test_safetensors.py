"""Headers of .safetensors: what is one, and what is a pickle under its name."""

import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from sdxl_lora.io.safetensors import TensorFile


def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path):
    """640 bytes are 0x80 0x02, as a pickle of protocol 2 begins."""
    path = tmp_path / "a.safetensors"
    for length in range(400, 700):
        save_file({"x": torch.ones(2)}, path, {"note": "n" * length})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert struct.unpack("<Q", path.read_bytes()[:8]) == (640,)
    with TensorFile(path) as file:
        assert torch.equal(file.read("x"), torch.ones(2))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_are_told_for_what_they_are(tmp_path, protocol):
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps({"x": [1, 2]}, protocol))
    with pytest.raises(ValueError, match="is a pickle"):
        TensorFile(path)
