"""Sinks: where decodes go. One file each, one line each in `SINKS`."""
