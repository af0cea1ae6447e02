"""Files that a run writes and resumes from: its directory, its checkpoints, the model card, and publishing."""
