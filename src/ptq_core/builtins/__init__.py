"""Plugins that ship inside core; they import ptq_core.api and nothing else of it."""
