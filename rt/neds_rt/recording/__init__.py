"""Recording what sources deliver: appended to a spool as it comes, then made a session file."""
