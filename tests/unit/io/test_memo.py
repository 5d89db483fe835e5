"""Facts kept between starts, and those that no longer apply."""

import pytest

from sdxl_lora.io.memo import FileMemo


@pytest.mark.parametrize("content", ["[1]", "5", "{half", '"text"'])
def test_a_damaged_memo_is_made_anew_and_named(content, tmp_path):
    (tmp_path / "memo.json").write_text(content)
    with pytest.warns(UserWarning, match=r"memo\.json is damaged and will be made again"):
        memo = FileMemo(tmp_path / "memo.json")
    assert memo.get_or_compute(["facts"], lambda: "made") == "made"
    memo.save()
    assert FileMemo(tmp_path / "memo.json").get_or_compute(["facts"], lambda: "again") == "made"


def test_what_does_not_fit_is_made_again(tmp_path):
    (tmp_path / "memo.json").write_text('{"facts": 5}')
    memo = FileMemo(tmp_path / "memo.json")
    assert memo.get_or_compute(["facts"], lambda: "made", lambda found: isinstance(found, str)) == "made"
    memo.save()
    assert FileMemo(tmp_path / "memo.json").get_or_compute(["facts"], lambda: "again") == "made"
