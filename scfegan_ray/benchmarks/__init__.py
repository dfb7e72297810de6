"""How fast things are here, against what they could be."""
