"""Tags as captions have them: which are said, in which order, and how they are spelled."""

import numpy as np
import pytest

from preprocess.captions.tag_list import TagList, check_blacklist, plain, read_tag_list, spelled, tags_said
from sdxl_lora.config.sections.preprocess import TaggerConfig
from sdxl_lora.errors import ConfigError

TAGS = TagList(
    ("safe", "explicit", "1girl", "long_hair", "^_^", "star_(symbol)", "miku_(vocaloid)", "cat_(nier)"),
    (9, 9, 0, 0, 0, 0, 4, 4),
)
LIKELY = np.array([0.2, 0.8, 0.5, 0.9, 0.36, 0.34, 0.86, 0.99])


def test_characters_come_first_and_each_kind_by_its_own_threshold():
    assert tags_said(LIKELY, TAGS, TaggerConfig()) == ["cat (nier)", "miku (vocaloid)", "long hair", "1girl", "^_^"]
    strict = TaggerConfig(tag_threshold=0.6, tag_character_threshold=0.9)
    assert tags_said(LIKELY, TAGS, strict) == ["cat (nier)", "long hair"]
    assert tags_said(LIKELY, TAGS, TaggerConfig(0.999, 0.999)) == []
    assert tags_said(np.full(8, 0.35), TAGS, TaggerConfig()) == ["1girl", "long hair", "^_^", "star (symbol)"]


def test_ratings_are_said_only_where_they_are_asked_for_and_last():
    said = tags_said(LIKELY, TAGS, TaggerConfig(tag_ratings=True))
    assert said[-2:] == ["^_^", "explicit"] and "safe" not in said
    assert tags_said(LIKELY, TAGS, TaggerConfig(0.999, 0.999, tag_ratings=True)) == ["explicit"]


def test_the_blacklist_takes_any_spelling_of_a_tag():
    for blacklist in (("long_hair", "cat_(nier)"), ("Long Hair", r"cat \(nier\)")):
        said = tags_said(LIKELY, TAGS, TaggerConfig(tag_blacklist=blacklist))
        assert said == ["miku (vocaloid)", "1girl", "^_^"]
        check_blacklist(blacklist, TAGS)
    assert plain(r" Cat \(NieR\)") == "cat_(nier)"
    with pytest.raises(ConfigError, match=r"'lonng hair'.*8 tags, did you mean long_hair"):
        check_blacklist(["lonng hair"], TAGS)


def test_underscores_are_spaces_but_in_faces_and_parentheses_as_asked_for():
    assert spelled("star_(symbol)", TaggerConfig()) == "star (symbol)"
    assert spelled("star_(symbol)", TaggerConfig(tag_spaces=False)) == "star_(symbol)"
    assert spelled("star_(symbol)", TaggerConfig(tag_escape_parentheses=True)) == r"star \(symbol\)"
    for face in ("^_^", "||_||", "(o)_(o)", ">_<"):
        assert spelled(face, TaggerConfig()) == face
    assert spelled("(o)_(o)", TaggerConfig(tag_escape_parentheses=True)) == r"\(o\)_\(o\)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tag_id,name,count\n0,1girl,9\n", "has no column category"),
        ("", "has no column name and no category"),
        ("tag_id,name,category,count\n0,1girl,0,9\n1,someone,1,9\n", "row 3 is 'someone' of category '1', it must be"),
        ("tag_id,name,category,count\n0,,0,9\n", "row 2 is .*, it must be"),
        ("tag_id,name,category,count\n0\n", "row 2 is .*, it must be"),
        ('tag_id,name,category\n0,"1girl,0\n', "cannot be read"),
        ("tag_id,name,category\n0,caf\udce9,0\n", "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=said):
        read_tag_list(path)


def test_a_list_is_read_in_its_order_with_commas_in_names(tmp_path):
    (tmp_path / "t.csv").write_text('tag_id,name,category,count\n9,general,9,1\n5,"1,000_years",0,2\n7,x,4,3\n')
    assert read_tag_list(tmp_path / "t.csv") == TagList(("general", "1,000_years", "x"), (9, 0, 4))
