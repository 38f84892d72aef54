"""The plugin host: find plugins, admit what they offer, look entries up by name.

``discover()`` makes a :class:`PluginHost`, a plain value; ``make_host`` makes one from given
modules, for tests. A plugin that misbehaves is recorded with its state and its reason and never
stops ``ptq``.
"""

from __future__ import annotations

from ptq_core.plugins.discovery import BUILT_IN, GROUP, discover, make_host
from ptq_core.plugins.guard import guarded
from ptq_core.plugins.host import PluginHost, blame
from ptq_core.plugins.records import KINDS, Kind, PluginRecord, Registered, State

__all__ = [
    "BUILT_IN",
    "GROUP",
    "KINDS",
    "Kind",
    "PluginHost",
    "PluginRecord",
    "Registered",
    "State",
    "blame",
    "discover",
    "guarded",
    "make_host",
]
