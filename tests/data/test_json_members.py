"""The cutter against ijson, on files of every shape that JSON allows."""

import json
import os
from pathlib import Path

import ijson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forceuq.data.json_members import member_spans, parse_members, read_span
from forceuq.errors import DataError

# What could be taken for structure, beside plain text.
TEXT = st.text(st.sampled_from('ab"\\{}[]:, \n\té\U0001f600'), max_size=6) | st.text(
    st.sampled_from('"\\{}'), min_size=60, max_size=70
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)
MEMBER = st.tuples(TEXT, st.dictionaries(TEXT, st.dictionaries(TEXT, VALUE, max_size=3), max_size=3) | VALUE)
# Blocks of less than one of the cutter's words of 64 bytes, of one and of several.
BLOCK = st.integers(1, 40) | st.sampled_from([63, 64, 65, 128, 200, 1000])
STYLE = st.tuples(st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from(["", " ", "\n\t "]), BLOCK)
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, members: list, style=(None, True, "", 0)) -> Path:
    """Write members, repeated keys too, in some style of white space and escapes."""
    indent, ascii_only, blank, _ = style

    def dumps(value):
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    text = f",{blank}".join(f"{dumps(key)}{blank}:{blank}{dumps(value)}{blank}" for key, value in members)
    path.write_text(f"{blank}{{{blank}{text}}}{blank}", encoding="utf-8")
    return path


def cut(path: Path, block: int = 2**20) -> list:
    """Return the members as the cutter and the parser give them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        spans = list(member_spans(path, block))
        return [pair for span in spans for pair in parse_members(read_span(descriptor, span))]
    finally:
        os.close(descriptor)


@QUICK
@given(members=st.lists(MEMBER, max_size=6), style=STYLE)
def test_members_are_those_of_ijson(tmp_path, members, style):
    path = write(tmp_path / "x", members, style)
    with path.open("rb") as handle:
        expected = list(ijson.kvitems(handle, "", use_float=True))
    assert repr(cut(path, style[-1])) == repr(expected) == repr(members)


@QUICK
@given(members=st.lists(MEMBER, min_size=1, max_size=4), style=STYLE, data=st.data())
def test_what_is_cut_is_json_and_nothing_else_is(tmp_path, members, style, data):
    path = write(tmp_path / "x", members, style)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.sampled_from([b"", *(bytes([c]) for c in b'"\\{}[],:x ')]))
    path.write_bytes(damaged := whole[:at] + byte + whole[at + 1 :])
    try:
        expected = json.loads(damaged)
    except ValueError:
        expected = None
    try:
        found = dict(cut(path, style[-1]))
    except (DataError, ValueError):
        found = None
    assert repr(found) == repr(expected if isinstance(expected, dict) else None)


def test_what_python_writes_for_numbers_that_are_not_finite_is_read(tmp_path):
    text = '{"a": {"x": [NaN, 1.5]}, "b": -Infinity, "c": Infinity}'
    (tmp_path / "x").write_text(text)
    assert repr(cut(tmp_path / "x")) == repr(list(json.loads(text).items()))
    for other in ("nan", "inf", "+Infinity", "-NaN", "Infinit"):
        (tmp_path / "x").write_text(f'{{"a": {other}}}')
        with pytest.raises(ValueError, match="Expecting"):
            cut(tmp_path / "x")


def test_members_with_objects_come_one_a_span(tmp_path):
    path = write(tmp_path / "x", [("a", {"}": 1}), ("b", {}), ("c", {"x": {"\\": '"{'}}), ("a", {})])
    spans = list(member_spans(path))
    assert [span.single for span in spans] == [True] * 4
    assert [path.read_bytes()[s.start : s.stop] for s in spans][1:4:2] == [b'"b":{}', b'"a":{}']
    spans = list(member_spans(write(tmp_path / "y", [("a", {}), ("a", None), ("b", [{}, {}]), ("c", {}), ("d", {})])))
    assert [span.single for span in spans] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends at byte 0 without an object"),
        ("  \n", "ends at byte 3 without an object"),
        ("[1, 2]", "not an object at byte 0"),
        ("}", "not an object at byte 0"),
        (' x{"a": {}}', "not an object at byte 1"),
        ('{"a": {}', "ends at byte 8 with 1 objects open"),
        ('{"a": {"b', "inside a string"),
        ('{"a": {}} {"a": {}}', "more follows its end at byte 10"),
        ('{"a": {}}x', "more follows its end at byte 9"),
    ],
)
def test_damage_outside_members_is_told_with_its_place(tmp_path, text, message):
    (tmp_path / "x").write_text(text)
    for block in (3, 2**20):
        with pytest.raises(DataError, match=message):
            list(member_spans(tmp_path / "x", block))


def test_a_member_without_end_is_not_gathered(tmp_path, monkeypatch):
    monkeypatch.setattr("forceuq.data.json_members.LARGEST_MEMBER", 1000)
    for text in ('{"a": {"b": "' + "x" * 3000, '{"a": {}, ' + '"b": 0, ' * 300 + '"c": {}}'):
        (tmp_path / "x").write_text(text)
        with pytest.raises(DataError, match="no end of the member at byte 1 within 1000"):
            list(member_spans(tmp_path / "x", 100))


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(member_spans(tmp_path / "none"))
