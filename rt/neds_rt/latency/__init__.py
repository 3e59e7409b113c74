"""`neds-rt bench`: whole servers measured from outside, beside an echo server, in one run."""
