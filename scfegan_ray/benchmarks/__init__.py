"""How fast things are here, against what they could be: each a command, never a timed test."""
