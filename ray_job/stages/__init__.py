"""The stages of a row: prepare (CPU), generate (the actor), write. `poison.py` finds rows that kill their process.

Nothing here imports Ray.
"""
