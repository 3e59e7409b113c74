"""Twins of acquisition programs: servers that send what the real ones send, from known spikes."""
