"""DropBlock in Lightning: a callback that injects, schedules, checkpoints and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from ..errors import DropBlockValueError
from .callback_core import Driver, keep_prob_by_stage

if TYPE_CHECKING or find_spec("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.model_helpers import is_overridden
else:  # the same library under its older name
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.utilities.model_helpers import is_overridden


class DropBlockCallback(Callback):
    """Puts DropBlocks into the module that is fitted, and moves their keep_prob with each optimizer step.

    The injection comes before the strategy wraps or compiles the module; where the strategy converts it to
    SyncBatchNorm it is made anew after that. A module that builds its network in ``configure_model`` is injected after
    it; if it shards or compiles it there too, call :func:`dropblock_inject.inject_dropblock` between the two and pass
    ``stages=None``. The schedule is in Lightning's checkpoints, goes on from them, and follows the first optimizer.
    With ``Trainer(logger=...)`` the keep_prob of each stage is logged as ``keep_prob/stage4`` and so on.

    Args:
        stages: as in :func:`dropblock_inject.inject_dropblock`; None: the module is injected by its own code.
        submodule: dotted name of the network within the module, if not all of it is meant. A module without a
            ``forward`` of its own need not say it where only one of its submodules convolves.
        schedule: arguments of :class:`dropblock_inject.KeepProbSchedule`, such as ``{"mode": "cosine"}``; its
            `total_steps` is by default the trainer's ``estimated_stepping_batches``.
        verify: watch the first training steps; a DropBlock that drops nothing is an error.
        options: further arguments of ``inject_dropblock``.

    Attributes:
        schedule: the :class:`dropblock_inject.KeepProbSchedule`, from the start of the training on.

    Raises:
        DropBlockInjectError: in ``Trainer.fit``, as ``inject_dropblock`` and ``KeepProbSchedule`` do.
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
        self._driver = Driver(stages, schedule, verify, options)
        self._saved: dict[str, Any] | None = None
        self._handle: RemovableHandle | None = None

    @property
    def schedule(self) -> Any:
        return self._driver.schedule

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not is_overridden("configure_model", pl_module):
            self._driver.inject(self._network(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._driver.inject(self._network(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint from before DropBlock has no schedule: it goes on at the step that the training has reached.
        done = trainer.global_step // len(trainer.optimizers)
        schedule = self._driver.begin(self._network(pl_module), trainer.estimated_stepping_batches, last_step=done - 1)
        if self._saved is not None:
            schedule.load_state_dict(self._saved, strict=False)
        self._handle = schedule.attach(trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.log_dict(keep_prob_by_stage(self._network(pl_module)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.schedule is None else self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None

    def _network(self, pl_module: LightningModule) -> nn.Module:
        """The named submodule; else the module itself, or if it has no forward() the child of it that convolves."""
        if self.submodule or is_overridden("forward", pl_module):
            return pl_module.get_submodule(self.submodule)
        convolving = {
            name: child
            for name, child in pl_module.named_children()
            if any(isinstance(module, _ConvNd) for module in child.modules())
        }
        if len(convolving) != 1:
            found = f"{', '.join(convolving)} do" if convolving else "none does"
            raise DropBlockValueError(
                f"{type(pl_module).__name__} has no forward(), and of its submodules {found} convolve; say which is "
                "the network with submodule=..."
            )
        return next(iter(convolving.values()))
