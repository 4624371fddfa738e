"""The output folder: parts, what they hold, resuming, verifying, and the run's summary."""
