"""What Arrow does not do alike for every type: types on their way between stages, and values as Python's."""
