"""The command line with hostile plugins installed: it answers, and names them on request."""

from __future__ import annotations

import json

import pytest

HOSTILE = {
    "raises": ("raise RuntimeError('boom at import')", "boom at import"),
    "exits": ("import sys; sys.exit(9)", "SystemExit: 9"),
    "prints and raises": ("print('{{ not json')\nraise RuntimeError('after print')", "after print"),
    "misspelt": (
        "from ptq_core.api import hookimpl\n@hookimpl\ndef ptq_calibratrs(): return []",
        "ptq_calibratrs",
    ),
    "future": ("ptq_api_version = (99, 0)", "99.0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_plugins_list_names_the_plugin_and_the_reason(site, case):
    source, reason = HOSTILE[case]
    site.install("ptq-bad", source)

    done = site.run("-m", "ptq_core", "plugins", "list", COLUMNS="300")

    assert done.returncode == 0, done.stderr
    assert "ptq-bad" in done.stdout
    assert reason in done.stdout
    assert "ptq-good" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_json_stays_one_object_although_a_plugin_prints(site):
    site.install("ptq-bad", "print('hello')\nraise RuntimeError('after print')")

    done = site.run("-m", "ptq_core", "plugins", "list", "--json")

    assert done.returncode == 0, done.stderr
    text = json.dumps(json.loads(done.stdout))
    assert "ptq-bad" in text
    assert "RuntimeError: after print" in text
    assert "hello" not in done.stdout


def test_help_does_not_care(site):
    site.install("ptq-bad", "import sys; sys.exit(9)")

    done = site.run("-m", "ptq_core", "--help")

    assert done.returncode == 0, done.stderr
    assert "quantize" in done.stdout


def test_disabled_plugin_is_not_imported(site):
    site.install("ptq-bad", "import sys; sys.stderr.write('IMPORTED')")

    done = site.run(
        "-m", "ptq_core", "plugins", "list", COLUMNS="300", PTQ_DISABLE_PLUGINS="ptq_bad"
    )

    assert done.returncode == 0, done.stderr
    assert "disabled" in done.stdout.casefold()
    assert "IMPORTED" not in done.stderr
