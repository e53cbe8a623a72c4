"""Runs: recording, deleting, reading them, and timing the work that they describe."""
