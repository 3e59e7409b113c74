"""Sessions: container, store, readers, synthetic animals, windows and splits."""
