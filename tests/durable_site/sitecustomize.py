"""On PYTHONPATH, it lets every Python process note what it syncs; see tests/durable.py."""

from tests.durable import watch

watch()
