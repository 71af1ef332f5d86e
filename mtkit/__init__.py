"""Neural machine translation: train models and translate with them."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtkit.errors import MtkitError
    from mtkit.exchange.engines import load
    from mtkit.translation.translator import Translator

__all__ = ["MtkitError", "Translator", "load"]

__version__ = _version("mtkit")

_HOMES = {
    "MtkitError": "mtkit.errors",
    "Translator": "mtkit.translation.translator",
    "load": "mtkit.exchange.engines",
}


def __getattr__(name: str) -> Any:
    # Imported when first used, so that `mtkit --help` and `import mtkit` do not wait for torch.
    if name in _HOMES:
        return getattr(_import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mtkit' has no attribute {name!r}")
