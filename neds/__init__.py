"""neds: train, evaluate and export models that translate between spikes and behaviour."""
