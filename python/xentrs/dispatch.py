"""What kind of array is this? Asked once for each argument; everything else is the adapter's."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from xentrs.adapters.numpy import Lent


class Adapter(Protocol):
    """What an adapter module offers."""

    __name__: str

    def lend(self, values: Any, name: str) -> Lent:
        """Returns the array's own memory."""

    def copy_targets(self, values: Any, name: str = "targets") -> NDArray[Any]:
        """Copies class ids."""

    def wrap(self, array: NDArray[Any]) -> Any:
        """Makes a result of the caller's kind."""


def adapter_of(values: Any) -> Adapter:
    """Returns the adapter for an array. torch is looked for only where the caller has imported it."""
    torch = sys.modules.get("torch")
    return adapter_named("torch" if torch is not None and isinstance(values, torch.Tensor) else "numpy")


def adapter_named(name: str) -> Adapter:
    """Returns the adapter of that name; a state that is unpickled remembers its own."""
    return cast(Adapter, importlib.import_module(f"xentrs.adapters.{name}"))
