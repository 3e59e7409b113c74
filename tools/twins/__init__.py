"""Servers that behave on the wire as the programs of a rig do: what sources are tested against."""
