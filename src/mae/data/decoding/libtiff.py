"""What libtiff says of a file while Pillow decodes it; on its own it prints that to stderr."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_LONGEST = 500  # bytes of a message
_OF_TAGS = re.compile(r"\w*(Directory|Field|Fetch|Tag|DirEntry)\w*:")


class _Thread(threading.local):
    """The messages of the file that this thread decodes, if it decodes one."""

    messages: list[str] | None = None


_thread = _Thread()


@contextmanager
def messages_caught() -> Iterator[list[str]]:
    """Collect libtiff's errors in this thread; those of other threads go where they went.

    Where Pillow was built so that the library cannot be found, nothing is collected.
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
    """Tell whether a message is of pixels: what is wrong with other tags changes none."""
    return _OF_TAGS.match(message) is None


@cache
def _listen() -> object:
    """Have libtiff call us, for as long as the process lives."""
    try:
        # The library is looked for among those that Pillow's module is linked to.
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
    return heard  # kept by the cache: libtiff has only its address
