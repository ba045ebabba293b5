"""DropBlock in one line, in place, in any pretrained timm or torchvision CNN.

:func:`inject_dropblock` puts DropBlocks into a built model, and :func:`plan_dropblock` says where they would go.
:class:`KeepProbSchedule` moves their keep_prob over the training.

Other modules: `dropblock_inject.presets` has named choices of arguments, `dropblock_inject.plot` pictures,
`dropblock_inject.errors` the errors. `dropblock_inject.integrations.lightning` and
`dropblock_inject.integrations.transformers` are callbacks for trainers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .public_names import *  # noqa: F403
    from .public_names import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Imports all public names when the first is used. Until then torch is not needed: ``--help`` is quick."""
        if name == "__all__" or not name.startswith("__"):
            public = import_module(".public_names", __name__)
            globals().update({known: getattr(public, known) for known in ("__all__", *public.__all__)})
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return ["__version__", "errors", "presets", *import_module(".public_names", __name__).__all__]
