"""Tables of the README: `accuracy` and `compared` of scores, `speed` of times and memory."""
