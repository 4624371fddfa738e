"""Engines: samples in, results out. They know neither Ray nor a model's name."""
