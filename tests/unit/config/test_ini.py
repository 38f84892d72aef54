from __future__ import annotations

import pytest

from ptq_core.config.ini import read_ini


def entries(text):
    document = read_ini(text, file="x.cfg")
    assert document.problems == []
    return {
        name: {key: entry.value for key, entry in section.entries.items()}
        for name, section in document.sections.items()
    }


def complaints(text):
    return [(p.location.line, p.message) for p in read_ini(text, file="x.cfg").problems]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("k=v", "v"),
        ("  k  =  v  ", "v"),
        ("\tk\t=\tv\t", "v"),
        ("k=v # comment", "v"),
        ("k=v\t# comment", "v"),
        ("k=v#no comment", "v#no comment"),
        ("k=#v", "#v"),
        ('k="v # no comment"  # comment', "v # no comment"),
        ("k=a=b==c", "a=b==c"),
        ('k="/a b/c"', "/a b/c"),
        ('k="a","b, c"', '"a","b, c"'),
        ("k=[1, 2, 3] # three", "[1, 2, 3]"),
        ("k=a ; b", "a ; b"),
        ("k='v'", "'v'"),
        ("k=ä, 名", "ä, 名"),
    ],
)
def test_values(line, value):
    assert entries(f"[s]\n{line}\n") == {"s": {"k": value}}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark(end):
    text = end.join(["\ufeff# first", "[s]", "k=v", "", "broken"])
    assert entries(text.removesuffix("broken")) == {"s": {"k": "v"}}
    assert complaints(text) == [(5, "'broken': expected key=value")]


@pytest.mark.parametrize(
    "header", ["[s]", "  [s]  ", "[ s ]", "[s] # comment", "[s]#comment", "\t[s]"]
)
def test_headers(header):
    assert entries(f"{header}\nk=v") == {"s": {"k": "v"}}


def test_comments_and_blank_lines():
    assert entries("# a=b\n\n   # [x]\n[s]\n  #k=1\nk=2\n   \n") == {"s": {"k": "2"}}


def test_sections_of_one_name_merge():
    assert entries("[s]\na=1\n[t]\nb=2\n[s]\nc=3") == {"s": {"a": "1", "c": "3"}, "t": {"b": "2"}}


def test_plugin_sections_merge_whatever_their_case_but_other_sections_do_not():
    assert set(entries("[calibrator.KL]\na=1\n[calibrator.kl]\nb=2\n[S]\n[s]")) == {
        "calibrator.kl",
        "S",
        "s",
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[s\nk=v", 1, "'[s' is not a section header"),
        ("[s] k=v", 1, "'[s] k=v' is not a section header"),
        ("[s]]", 1, "'[s]]' is not a section header"),
        ("[]\nk=v", 1, "'[]' is not a section header"),
        ("k=v\n[s]", 1, "'k' stands above the first section"),
        ("[s]\n\nhello", 3, "'hello': expected key=value"),
        ("[s]\n=v", 2, "'=v': expected key=value"),
        ("[s]\nk=", 2, "'k' has no value"),
        ("[s]\nk =  # nothing", 2, "'k' has no value"),
        ('[s]\nk=""', 2, "'k' has no value"),
        ('[s]\nk="v', 2, "'k': a double quote is not closed"),
        ("[s]\nk=1\nk=2", 3, "'k' is set twice, on lines 2 and 3"),
        ("[s]\nk=1\n[t]\n[s]\nk=2", 5, "'k' is set twice, on lines 2 and 5"),
        ("[calibrator.KL]\nk=1\n[calibrator.kl]\nk=2", 4, "'k' is set twice, on lines 2 and 4"),
    ],
)
def test_problems(text, line, message):
    assert complaints(text) == [(line, message)]


def test_semicolon_comments_are_explained():
    (problem,) = read_ini("[s]\n; comment").problems
    assert problem.hint == "comments begin with '#'"


def test_keys_below_a_broken_header_are_read():
    document = read_ini("[s\nk=v")
    assert document.sections["s"].entries["k"].value == "v"
