"""Loggers that show no credentials."""

from __future__ import annotations

import logging

from ray_job.redaction.text import without_secrets


class _Redaction(logging.Filter):
    """Takes them out of a record's message and of its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info))
        return True


def logger_of(module: str) -> logging.Logger:
    """A module's logger, as `logging.getLogger` gives it; what is logged with it is redacted."""
    logger = logging.getLogger(module)
    if not any(isinstance(each, _Redaction) for each in logger.filters):
        logger.addFilter(_Redaction())
    return logger
