"""The loggers of the package: whatever is logged is escaped first."""

from __future__ import annotations

import logging

from ._escape import escape_message


class _EscapeFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = escape_message(record.getMessage()), ()
        return True


_ESCAPE_FILTER = _EscapeFilter()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name, which escapes its messages."""
    logger = logging.getLogger(name)
    logger.addFilter(_ESCAPE_FILTER)  # a filter that it has already is not added again
    return logger
