"""What a network can be trained for beside classification: its data's batches, loss, measure and pictures."""
