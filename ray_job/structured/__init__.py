"""Answers in a form: what a form may say, the grammar it becomes, and which tokens that allows next."""
