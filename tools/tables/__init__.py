"""Tables of the README: `accuracy`, `compared` of scores, the others of times and engines."""
