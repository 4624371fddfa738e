"""Forms of answers: what conforms to them, and the typed values of those that are JSON."""
