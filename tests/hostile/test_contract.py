"""Every way to break the contract while loading, with the state and the reason that follow."""

from __future__ import annotations

import pytest

from ptq_core.api import API_VERSION
from ptq_core.errors import InputError
from ptq_core.plugins import State, discover

MAJOR, MINOR = API_VERSION
HOOKS = (
    "ptq_calibrators, ptq_preprocessors, ptq_targets, ptq_runners, ptq_encodings, ptq_commands, "
    "ptq_event"
)
API = """
from dataclasses import dataclass
from ptq_core.api import *

def entry(name="BAD", **more):
    more.setdefault("factory", print)
    return CalibratorEntry(name=name, summary="does no good", **more)
"""

# What a plugin's module says, the state that it gets, and the text of the reason: all of it, or
# up to … where Python or pluggy finish it in their own way.
CASES = {
    "raises on import": ("raise RuntimeError('boom')", State.BROKEN, "RuntimeError: boom"),
    "exits on import": ("import sys; sys.exit(7)", State.BROKEN, "SystemExit: 7"),
    "raises a BaseException on import": (
        "class Stop(BaseException): pass\nraise Stop",
        State.BROKEN,
        "Stop",
    ),
    "imports a missing module": (
        "import no_such_module_anywhere",
        State.BROKEN,
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "syntax error": (
        "def broken(:",
        State.BROKEN,
        "SyntaxError: invalid syntax (ptq_bad.py, line 1)",
    ),
    "exception that cannot be printed": (
        "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
        State.BROKEN,
        "Mute: (its text cannot be shown)",
    ),
    "recursion without end": (
        "def f(): f()\nf()",
        State.BROKEN,
        "RecursionError: maximum recursion depth exceeded…",
    ),
    "imports what this API has not": (
        "from ptq_core.api import FromTheFuture",
        State.BROKEN,
        "ImportError: cannot import name 'FromTheFuture' from 'ptq_core.api' …",
    ),
    "no hook": (
        "x = 1",
        State.BROKEN,
        "it implements no hook; mark its functions with @hookimpl from ptq_core.api",
    ),
    "hook raises": (
        API + "@hookimpl\ndef ptq_calibrators(): raise KeyError('lost')",
        State.BROKEN,
        "KeyError: 'lost'",
    ),
    "hook exits": (
        API + "@hookimpl\ndef ptq_calibrators(): raise SystemExit('goodbye')",
        State.BROKEN,
        "SystemExit: goodbye",
    ),
    "generator raises half-way": (
        API + "@hookimpl\ndef ptq_calibrators():\n    yield entry()\n    raise OSError('half-way')",
        State.BROKEN,
        "OSError: half-way",
    ),
    "misspelt hook": (
        API + "@hookimpl\ndef ptq_calibratrs(): return [entry()]",
        State.BROKEN,
        "there is no hook 'ptq_calibratrs'; did you mean 'ptq_calibrators'?",
    ),
    "hook from nowhere": (
        API + "@hookimpl\ndef xyz(): return []",
        State.BROKEN,
        f"there is no hook 'xyz'; there are: {HOOKS}",
    ),
    "hook without its mark": (
        API + "@hookimpl\ndef ptq_event(event): pass\ndef ptq_runners(): return []",
        State.BROKEN,
        "ptq_runners() is not marked with @hookimpl",
    ),
    "hook wrapper": (
        API + "@hookimpl(wrapper=True)\ndef ptq_runners():\n    return (yield)",
        State.BROKEN,
        "ptq_runners() is a hook wrapper; ptq has none",
    ),
    "event hook that never runs": (
        API + "@hookimpl\ndef ptq_event(event):\n    yield event",
        State.BROKEN,
        "ptq_event() is a generator or async; it would never run",
    ),
    "hook asks for arguments": (
        API + "@hookimpl\ndef ptq_calibrators(config): return [entry()]",
        State.BROKEN,
        "PluginValidationError: Plugin 'ptq-bad' for hook 'ptq_calibrators' …",
    ),
    "yields the wrong type": (
        API + "@hookimpl\ndef ptq_calibrators():\n    yield entry('FINE')\n    yield 'KL'",
        State.BROKEN,
        "ptq_calibrators() yielded 'KL', expected a CalibratorEntry",
    ),
    "yields the entry of another hook": (
        API + "@hookimpl\ndef ptq_runners(): return [entry()]",
        State.BROKEN,
        "ptq_runners() yielded a CalibratorEntry, expected a RunnerEntry",
    ),
    "yields the class": (
        API + "@hookimpl\ndef ptq_calibrators(): yield CalibratorEntry",
        State.BROKEN,
        "ptq_calibrators() yielded the class CalibratorEntry, expected a CalibratorEntry",
    ),
    "returns one entry": (
        API + "@hookimpl\ndef ptq_calibrators(): return entry()",
        State.BROKEN,
        "ptq_calibrators() returned a CalibratorEntry, expected an iterable of CalibratorEntry",
    ),
    "returns a number": (
        API + "@hookimpl\ndef ptq_targets(): return 5",
        State.BROKEN,
        "ptq_targets() returned a int, expected an iterable of TargetEntry",
    ),
    "forgets to return": (
        API + "@hookimpl\ndef ptq_calibrators(): [entry()]",
        State.BROKEN,
        "ptq_calibrators() returned None, expected an iterable of CalibratorEntry",
    ),
    "name is not a word": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry('a:b'), entry('a b'), entry('')]",
        State.BROKEN,
        "ptq_calibrators() named an entry 'a:b', expected a word without ':'; "
        "ptq_calibrators() named an entry 'a b', expected a word without ':'; "
        "ptq_calibrators() named an entry '', expected a word without ':'",
    ),
    "name is no text": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry(3)]",
        State.BROKEN,
        "ptq_calibrators() named an entry 3, expected a word without ':'",
    ),
    "aliases in one text": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry(aliases='AB')]",
        State.BROKEN,
        "ptq_calibrators() 'BAD': aliases is 'AB', expected a tuple of words without ':'",
    ),
    "summary is no text": (
        API
        + "@hookimpl\ndef ptq_encodings():\n"
        + "    return [EncodingEntry(name='E', summary=None, factory=print)]",
        State.BROKEN,
        "ptq_encodings() 'E': summary is None, expected text",
    ),
    "options that can change": (
        API
        + "@dataclass\nclass Loose:\n    bins: int = 1\n"
        + "@hookimpl\ndef ptq_calibrators(): return [entry(options=Loose)]",
        State.BROKEN,
        "ptq_calibrators() 'BAD': options is <class 'ptq_bad.Loose'>, "
        "expected a frozen dataclass type",
    ),
    "options of another kind": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry(options=dict)]",
        State.BROKEN,
        "ptq_calibrators() 'BAD': options is <class 'dict'>, expected a frozen dataclass type",
    ),
    "options already made": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry(options=NoOptions())]",
        State.BROKEN,
        "ptq_calibrators() 'BAD': options is NoOptions(), expected a frozen dataclass type",
    ),
    "factory cannot be called": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry(factory='KL')]",
        State.BROKEN,
        "ptq_calibrators() 'BAD': factory is 'KL', expected a function",
    ),
    "target without a specification": (
        API
        + "@hookimpl\ndef ptq_targets():\n"
        + "    return [TargetEntry(name='NPU', summary='fast', spec={})]",
        State.BROKEN,
        "ptq_targets() 'NPU': spec is a dict, expected a TargetSpec",
    ),
    "endings in one text": (
        API
        + "@hookimpl\ndef ptq_preprocessors():\n"
        + "    return [PreprocessorEntry(name='P', summary='s', factory=print, suffixes='.png')]",
        State.BROKEN,
        "ptq_preprocessors() 'P': suffixes is '.png', "
        "expected a tuple of endings in lower case, such as ('.npy',)",
    ),
    "endings in upper case": (
        API
        + "@hookimpl\ndef ptq_preprocessors():\n"
        + "    return [PreprocessorEntry(name='P', summary='', factory=print, suffixes=('.PNG',))]",
        State.BROKEN,
        "ptq_preprocessors() 'P': suffixes is ('.PNG',), "
        "expected a tuple of endings in lower case, such as ('.npy',)",
    ),
    "one name twice": (
        API + "@hookimpl\ndef ptq_calibrators(): return [entry('Kl'), entry('KL')]",
        State.BROKEN,
        "ptq_calibrators() offers 'kl' twice",
    ),
    "alias that is another's name": (
        API
        + "@hookimpl\ndef ptq_calibrators():\n"
        + "    return [entry('A'), entry('B', aliases=('a',))]",
        State.BROKEN,
        "ptq_calibrators() offers 'a' twice",
    ),
    "several faults": (
        API
        + "@hookimpl\ndef ptq_calibrators(): return [entry(factory=None), 1]\n"
        + "@hookimpl\ndef ptq_runners(): return ['r']",
        State.BROKEN,
        "ptq_calibrators() 'BAD': factory is None, expected a function; "
        "ptq_calibrators() yielded 1, expected a CalibratorEntry; "
        "ptq_runners() yielded 'r', expected a RunnerEntry",
    ),
    "API of the future": (
        f"ptq_api_version = ({MAJOR + 1}, 0)\nfrom ptq_core.api import hookimpl\n"
        "@hookimpl\ndef ptq_calibrators(): raise AssertionError('never called')",
        State.INCOMPATIBLE,
        f"it needs plugin API {MAJOR + 1}.0, this ptq-core has {MAJOR}.{MINOR}; upgrade ptq-core",
    ),
    "API with a newer minor": (
        f"ptq_api_version = ({MAJOR}, {MINOR + 1})",
        State.INCOMPATIBLE,
        f"it needs plugin API {MAJOR}.{MINOR + 1}, this ptq-core has {MAJOR}.{MINOR}; "
        "upgrade ptq-core",
    ),
    "API of the past": (
        f"ptq_api_version = ({MAJOR - 1}, 9)",
        State.INCOMPATIBLE,
        f"it needs plugin API {MAJOR - 1}.9, this ptq-core has {MAJOR}.{MINOR}; upgrade ptq-bad",
    ),
    "API version in words": (
        "ptq_api_version = '1.0'",
        State.BROKEN,
        "ptq_api_version is '1.0', expected two integers such as (1, 0)",
    ),
    "API version of three": (
        "ptq_api_version = (1, 0, 0)",
        State.BROKEN,
        "ptq_api_version is (1, 0, 0), expected two integers such as (1, 0)",
    ),
    "API version of truths": (
        "ptq_api_version = (True, False)",
        State.BROKEN,
        "ptq_api_version is (True, False), expected two integers such as (1, 0)",
    ),
    "API version below zero": (
        "ptq_api_version = (1, -1)",
        State.BROKEN,
        "ptq_api_version is (1, -1), expected two integers such as (1, 0)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_module_is_named_with_its_reason(site, case):
    source, state, error = CASES[case]
    site.install("ptq-bad", source, version="0.3")

    host = discover()

    bad = site.record(host, "ptq-bad")
    assert (bad.state, bad.version, bad.entries) == (state, "0.3", {})
    if error.endswith("…"):
        assert bad.error.startswith(error[:-1])
    else:
        assert bad.error == error
    assert "\n" not in bad.error
    assert site.record(host, "ptq-good").state is State.ACTIVE
    assert host.calibrator("good").qualified == "ptq-good:GOOD"
    with pytest.raises(InputError) as caught:
        host.calibrator("BAD")
    verb = "is incompatible" if state is State.INCOMPATIBLE else "failed to load"
    assert f"; plugin 'ptq-bad' 0.3 {verb} and may provide it: {bad.error}" in str(caught.value)
