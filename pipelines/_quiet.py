"""Keeping diffusers and transformers quiet where their bars and warnings would bury ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log

LIBRARIES = (diffusers_log, transformers_log)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, both libraries show no progress bar and log errors only; their settings come back afterwards."""
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in LIBRARIES]
    for log in LIBRARIES:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level, bar in before:
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()
