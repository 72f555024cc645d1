"""What the commands share: candidates, the race between them, and the time that they are given."""
