"""The callbacks notice at a checkpoint that a DropBlock has died since the start of the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import CifarResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dropblock_inject import inject_dropblock
from dropblock_inject.errors import DeadSiteError

lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dropblock_inject.integrations import lightning as for_lightning  # noqa: E402
from dropblock_inject.integrations import transformers as for_transformers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of both libraries, about themselves

IMAGES, LABELS = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
SMALL = {"block_size": 3, "example_input": IMAGES[:1]}
DEAD = r"stage3\.0.*, which is gone"


def kill_dropblocks(net: nn.Module) -> None:
    net.stage3 = CifarResNet(1).stage3


class Module(lightning.LightningModule):
    def __init__(self, dies_at: int | None) -> None:
        super().__init__()
        self.net, self.dies_at = CifarResNet(1), dies_at

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if index == self.dies_at:
            kill_dropblocks(self.net)
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("dies_at", [None, 2])
def test_a_lightning_checkpoint(tmp_path: Path, dies_at: int | None) -> None:
    fit = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[for_lightning.DropBlockCallback((-2, -1), **SMALL)],
    )
    fit.fit(Module(dies_at), DataLoader(TensorDataset(IMAGES, LABELS), 8))
    assert fit.global_step == 4
    if dies_at is None:
        fit.save_checkpoint(tmp_path / "last.ckpt")
    else:
        with pytest.raises(DeadSiteError, match=DEAD):
            fit.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").exists() == (dies_at is None)


class Network(nn.Module):
    """As the Trainer of transformers wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = CifarResNet(1)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, *, model, **kwargs) -> None:
        if state.global_step == 2:
            kill_dropblocks(model.net)


def trainer(folder: Path, model: nn.Module, *callbacks):
    data = [{"images": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        save_strategy="steps",
        save_steps=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))


def test_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    options = {"block_size": 3, "example_input": (IMAGES[:1], LABELS[:1])}
    fit = trainer(tmp_path, Network(), for_transformers.DropBlockCallback((-2, -1), **options), Kill())
    with pytest.raises(DeadSiteError, match=DEAD):
        fit.train()
    assert fit.state.global_step == 3
    assert (tmp_path / "checkpoint-3").is_dir()  # the weights are saved all the same


def test_a_training_that_begins_with_a_dead_dropblock(tmp_path: Path) -> None:
    model = Network()
    inject_dropblock(model.net, (-2, -1), **SMALL)
    kill_dropblocks(model.net)
    fit = trainer(tmp_path, model, for_transformers.DropBlockCallback(None))
    with pytest.raises(DeadSiteError, match=DEAD):
        fit.train()
    assert fit.state.global_step == 0
