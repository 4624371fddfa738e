"""Answers in a form: what it may say, the grammar it becomes, which tokens that allows next; JSON as typed values."""
