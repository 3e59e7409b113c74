"""Sessions: container, store, readers, synthetic animals, windows and splits."""

from neds.data.session import Behaviour, Binned, Counts, Session, Spikes, Units

__all__ = ["Behaviour", "Binned", "Counts", "Session", "Spikes", "Units"]
