"""Trials of training: a search for loss weights, and variants of a config side by side."""
