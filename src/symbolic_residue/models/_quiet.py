"""Silence around foreign loading code, put back as it was afterwards.

1. transformers' own log level is raised to errors and its progress bars are switched off.
2. The hub client's progress bars are switched off.
3. Python warnings of these libraries are ignored inside the block: what they warn of (missing weights, wrong shapes) is
   checked by this package itself and raised as an error.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no log lines and no warnings from transformers and the hub client inside the block."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()  # the hub's too
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()  # the hub's too, hence the next line
            (enable_progress_bars if hub_bars else disable_progress_bars)()
