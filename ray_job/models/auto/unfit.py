"""What the continuous engine cannot run."""


class Unfit(Exception):  # noqa: N818 - it says what a model is
    """A model that the continuous engine cannot run. Its message says why, as in "its layers share keys"."""
