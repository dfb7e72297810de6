"""Faces prepared from photographs: sources, maps, masks, examples and the Ray Data pipeline."""
