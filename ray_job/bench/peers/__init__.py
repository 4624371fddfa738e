"""Other engines over the same checkpoint and rows, each in an environment of its own."""
