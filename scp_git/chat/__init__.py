"""Messages about runs and in threads, encrypted when asked.

The three functions below are public; they are loaded on first use, as
``cryptography`` takes its time to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scp_git.chat.crypto import decrypt_text, encrypt_text, is_encrypted

__all__ = ["decrypt_text", "encrypt_text", "is_encrypted"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("scp_git.chat.crypto"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
