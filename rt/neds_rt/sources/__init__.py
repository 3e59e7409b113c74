"""Sources: where spikes come from. One file each, one line each in `SOURCES`."""
