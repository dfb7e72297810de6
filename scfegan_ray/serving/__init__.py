"""What answers a person who edits."""
