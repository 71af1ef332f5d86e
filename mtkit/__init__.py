"""Neural machine translation: train models and translate with them."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtkit.translation.translator import Translator, load

__all__ = ["Translator", "load"]

__version__ = _version("mtkit")


def __getattr__(name: str) -> Any:
    # Lazily, so that `mtkit --help` and `import mtkit` do not wait for torch.
    if name in __all__:
        from mtkit.translation import translator

        return getattr(translator, name)
    raise AttributeError(f"module 'mtkit' has no attribute {name!r}")
