"""Capture libtiff error messages while Pillow decodes, instead of on stderr."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_LONGEST = 500  # bytes per message
_OF_TAGS = re.compile(r"\w*(Directory|Field|Fetch|Tag|DirEntry)\w*:")


class _Thread(threading.local):
    """Messages about the file that this thread is decoding; None if it is not."""

    messages: list[str] | None = None


_thread = _Thread()


@contextmanager
def messages_caught() -> Iterator[list[str]]:
    """Collect libtiff's errors of this thread; other threads keep the previous handler.

    Nothing is collected if libtiff cannot be found, which depends on how Pillow was built.
    """
    _listen()
    before = _thread.messages
    messages: list[str] = []
    _thread.messages = messages
    try:
        yield messages
    finally:
        _thread.messages = before


def in_the_pixels(message: str) -> bool:
    """Whether a message is about pixel data; errors in tags do not change pixels."""
    return _OF_TAGS.match(message) is None


@cache
def _listen() -> object:
    """Install the error handler of libtiff for the lifetime of the process."""
    try:
        # Find libtiff among the libraries that Pillow's module is linked to.
        library = ctypes.CDLL(_imaging.__file__)
        set_handler, vsnprintf = library.TIFFSetErrorHandler, ctypes.CDLL(None).vsnprintf
    except (AttributeError, OSError, TypeError):  # linked statically, or not a Unix
        return None
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
    before: int | None = None

    def hear(module: bytes | None, text: bytes, values: int) -> None:
        if _thread.messages is None:
            if before:
                _HANDLER(before)(module, text, values)
            return
        line = ctypes.create_string_buffer(_LONGEST)
        vsnprintf(line, _LONGEST, text, values)
        source = f"{module.decode(errors='replace')}: " if module else ""
        _thread.messages.append(source + line.value.decode(errors="replace"))

    heard = _HANDLER(hear)
    before = set_handler(ctypes.cast(heard, ctypes.c_void_p))
    return heard  # the cache keeps it alive: libtiff has only its address
