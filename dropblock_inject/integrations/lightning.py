"""DropBlock in Lightning: a callback that injects, schedules, checkpoints and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from ..errors import DropBlockValueError
from ..surgery.status import check_dropblock
from .callback_core import CallbackCore, keep_prob_by_stage

if TYPE_CHECKING or find_spec("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.model_helpers import is_overridden
else:  # the older name of the same library
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.utilities.model_helpers import is_overridden


class DropBlockCallback(Callback):
    """Injects DropBlocks into the module that is fitted, and moves their keep_prob with each optimizer step.

    The injection comes before the strategy wraps or compiles the module. If the strategy converts the module to
    SyncBatchNorm, the injection is repeated after that. A module that builds its network in ``configure_model`` is
    injected after this hook; if the hook shards or compiles the network too, call
    :func:`dropblock_inject.inject_dropblock` between the two and pass ``stages=None``.

    The schedule follows the first optimizer. Lightning's checkpoints contain it, and it continues from them.
    :func:`dropblock_inject.check_dropblock` runs when a checkpoint is saved and when a training begins or continues.
    With ``Trainer(logger=...)`` the keep_prob of each stage is logged as ``keep_prob/stage4`` and so on.

    Args:
        stages: as in :func:`dropblock_inject.inject_dropblock`. None without further options: the module is injected by
            its own code. None with options, such as `include`, reaches every block.
        submodule: dotted name of the network within the module. The default is the whole module; in a module without a
            ``forward`` of its own it is the submodule that convolves, if there is only one.
        schedule: arguments of :class:`dropblock_inject.KeepProbSchedule`, such as ``{"mode": "cosine"}``; the default
            of `total_steps` is the trainer's ``estimated_stepping_batches``.
        verify: watch the first training steps; a DropBlock that drops nothing is an error.
        options: further arguments of ``inject_dropblock``.

    Attributes:
        schedule: the :class:`dropblock_inject.KeepProbSchedule`; None before the training starts.

    Raises:
        DropBlockInjectError: from ``Trainer.fit``; the errors of ``inject_dropblock`` and ``KeepProbSchedule``.
        DeadSiteError: from ``Trainer.fit`` or ``Trainer.save_checkpoint``, if a DropBlock no longer takes part in the
            forward pass.
    """

    def __init__(
        self,
        stages: int | Sequence[int] | None = (3, 4),
        *,
        submodule: str = "",
        schedule: Mapping[str, Any] | None = None,
        verify: bool = True,
        **options: Any,
    ) -> None:
        self.submodule = submodule
        self._core = CallbackCore(stages, schedule, verify, options)
        self._saved: dict[str, Any] | None = None
        self._handle: RemovableHandle | None = None

    @property
    def schedule(self) -> Any:
        return self._core.schedule

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not is_overridden("configure_model", pl_module):
            self._core.inject(self._network(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._core.inject(self._network(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint of a training without DropBlock has no schedule: it starts at the step of the training.
        done = trainer.global_step // len(trainer.optimizers)
        schedule = self._core.begin(self._network(pl_module), trainer.estimated_stepping_batches, last_step=done - 1)
        if self._saved is not None:
            schedule.load_state_dict(self._saved, strict=False)
        self._handle = schedule.attach(trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.log_dict(keep_prob_by_stage(self._network(pl_module)))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        check_dropblock(self._network(pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.schedule is None else self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None

    def _network(self, pl_module: LightningModule) -> nn.Module:
        """The network: the submodule of that name, the module itself, or its only child that convolves."""
        if self.submodule or is_overridden("forward", pl_module):
            return pl_module.get_submodule(self.submodule)
        convolving = {
            name: child
            for name, child in pl_module.named_children()
            if any(isinstance(module, _ConvNd) for module in child.modules())
        }
        if len(convolving) != 1:
            raise DropBlockValueError(
                f"{type(pl_module).__name__} has no forward(), and {len(convolving)} of its submodules convolve"
                f"{': ' if convolving else ''}{', '.join(convolving)}; name the network with submodule=..."
            )
        return next(iter(convolving.values()))
