"""What a user would write instead of `neds-rt serve`: small programs that `bench/compare.py` runs.

They take the same frames, recompute the same model's window and publish the same message. They are
meant to be good: one thread, memory taken before the first frame, no gradients, no garbage
collection while they serve. They are simpler than the server in what they let pass: they trust
every frame, take a frame for a bin, and know neither late spikes nor gaps, several probes or
silence.
"""
