"""Models: from a checkpoint to what an engine drives. `loading.py` is the way in."""
