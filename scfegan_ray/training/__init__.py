"""State, step, checkpoint, the loop of one worker, and its launch on Ray Train."""
