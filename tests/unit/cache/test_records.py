"""Records: damaged ones are found."""

import pytest
import torch

from tests.conftest import CAPTIONS
from tests.helpers.caches import fill, records


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "missing", "rubbish"])
def test_a_damaged_record_is_found_and_made_again(tmp_path, tiny_base, images, damage):
    latents, texts = fill(tmp_path, tiny_base, images)
    for path, read in (
        (latents.path(1, True), lambda: latents.read(1, True)),
        (texts.path(CAPTIONS["coffee"]), lambda: texts.read(CAPTIONS["coffee"])),
    ):
        whole, before = path.read_bytes(), read()
        spoilt = {
            "cut": whole[:-50],
            "rubbish": b"rubbish",
            "flipped bit": whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:],
        }
        path.unlink()  # tensors that were read map the old file
        if damage in spoilt:
            path.write_bytes(spoilt[damage])
        if damage != "missing":
            with pytest.warns(UserWarning, match=f"{path.name} is damaged and will be made again"):
                after = read()
        else:
            fill(tmp_path, tiny_base, images)
            after = read()
        torch.testing.assert_close(after, before)
        assert path.read_bytes() == whole
    kept = records(tmp_path)
    latents.path(0, False).write_bytes(b"half")  # a start finds what is not whole without reading it all
    fill(tmp_path, tiny_base, images)
    assert {path for path, time in records(tmp_path).items() if kept[path] != time} == {latents.path(0, False)}
