"""Loggers that show no credentials, and nothing that cannot be written as UTF-8."""

from __future__ import annotations

import logging

from ray_job.redaction.text import without_secrets


class _Redaction(logging.Filter):
    """Makes a record's message and its traceback fit to be shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _shown(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = _shown(logging.Formatter().formatException(record.exc_info))
        return True


def _shown(text: str) -> str:
    return without_secrets(text).encode(errors="backslashreplace").decode()


def logger_of(module: str) -> logging.Logger:
    """A module's logger, as `logging.getLogger` gives it; what is logged with it is redacted."""
    logger = logging.getLogger(module)
    if not any(isinstance(each, _Redaction) for each in logger.filters):
        logger.addFilter(_Redaction())
    return logger
