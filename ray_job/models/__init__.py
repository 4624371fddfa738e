"""Models: from a checkpoint to what an engine drives. Start with `loading.py`."""
