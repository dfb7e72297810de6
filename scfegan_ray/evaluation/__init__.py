"""How good a model is: looks right, obeys strokes; measured by protocols with names."""
