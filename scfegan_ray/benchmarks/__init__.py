"""Benchmarks: each is a command, never a timed test."""
