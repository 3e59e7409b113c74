"""neds_rt: the runtime that serves a neds bundle beside a rig; it never imports torch or neds."""
