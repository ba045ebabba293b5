"""The callback for Lightning, in real trainings."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from digits import digits
from networks import CifarResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dropblock_inject import DropBlockInjectError, KeepProbSchedule, check_dropblock, dropblock_sites, inject_dropblock

lightning = pytest.importorskip("lightning.pytorch")

from dropblock_inject.integrations.lightning import DropBlockCallback  # noqa: E402
from dropblock_inject.surgery.place import Label  # noqa: E402

# Lightning warns about itself and about small data.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"block_size": 3, "keep_prob": 0.7, "example_input": torch.empty(1, 3, 32, 32)}


class Classifier(lightning.LightningModule):
    """A typical module: a network, and no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = CifarResNet(1)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return self.criterion(self.network(images), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Trace(lightning.Callback):
    """Records keep_prob of all sites in each training step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.values: dict[int, list[float]] = {}
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.values[trainer.global_step] = [site.effective_keep_prob for site in dropblock_sites(pl_module)]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.stop_at:
            raise Preempted


class Preempted(Exception):
    pass


def loader(count: int = 96) -> DataLoader:
    return DataLoader(TensorDataset(*digits(count)), 16)


def trainer(folder: Path, *callbacks: lightning.Callback, **options) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    return lightning.Trainer(
        **{"accelerator": "cpu", "max_epochs": 2, "default_root_dir": folder, **quiet, **options},
        callbacks=list(callbacks),
    )


def test_a_fine_tune_learns_with_dropblock_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Classifier()
    callback, trace = DropBlockCallback((-2, -1), **SMALL), Trace()
    fit = trainer(tmp_path, callback, trace, max_epochs=8)
    fit.fit(module, loader(480), loader(96))
    assert float(fit.callback_metrics["accuracy"]) > 0.5
    assert callback.schedule.last_step == fit.global_step == 8 * 30
    assert trace.values[0] == [1.0] * len(dropblock_sites(module))
    expected = [callback.schedule.value_at(60, site.keep_prob) for site in report_of(module)]
    assert trace.values[60] == pytest.approx(expected)
    assert fit.callback_metrics["keep_prob/stage3"] == pytest.approx(callback.schedule.value_at(239))
    assert CifarResNet(1).load_state_dict(module.network.state_dict(), strict=True)


def report_of(module: nn.Module):
    return [label.site for row in module.modules() if (label := Label.of(row))]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_and_resumed_training_has_the_same_trace(tmp_path: Path, accumulate: int) -> None:
    def run(name: str, resume: Path | None = None, stop_at: int | None = None) -> dict[int, list[float]]:
        torch.manual_seed(0)
        saving = lightning.callbacks.ModelCheckpoint(tmp_path / name, every_n_train_steps=2, save_top_k=-1)
        trace = Trace(stop_at)
        fit = trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL), saving, trace, accumulate_grad_batches=accumulate)
        if stop_at is None:
            fit.fit(Classifier(), loader(), ckpt_path=resume)
        else:
            with pytest.raises(Preempted):
                fit.fit(Classifier(), loader())
        return trace.values

    whole = run("whole")
    steps = 2 * 6 // accumulate
    assert sorted(whole) == list(range(steps))
    assert len({tuple(values) for values in whole.values()}) == steps
    first = run("first", stop_at=5)
    (checkpoint,) = (tmp_path / "first").glob("*step=4.ckpt")
    second = run("second", resume=checkpoint)
    assert min(second) == 4  # an epoch has six or three steps: this is within one
    assert {**first, **second} == whole


def test_a_longer_training_continues_and_says_what_changes(tmp_path: Path, caplog) -> None:
    saving = lightning.callbacks.ModelCheckpoint(tmp_path)
    trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL), saving).fit(Classifier(), loader())
    callback = DropBlockCallback((-2, -1), **SMALL)
    with caplog.at_level(logging.WARNING, "dropblock_inject"):
        trainer(tmp_path, callback, max_epochs=4).fit(Classifier(), loader(), ckpt_path=saving.best_model_path)
    assert (
        "went on at step 12 with another schedule than the saved one: total_steps was 12 and is now 24" in caplog.text
    )
    assert callback.schedule.last_step == 24


def test_a_training_that_began_without_dropblock_continues_with_it(tmp_path: Path) -> None:
    saving = lightning.callbacks.ModelCheckpoint(tmp_path)
    trainer(tmp_path, saving, max_epochs=1).fit(Classifier(), loader())
    callback, trace = DropBlockCallback((-2, -1), **SMALL), Trace()
    trainer(tmp_path, callback, trace).fit(Classifier(), loader(), ckpt_path=saving.best_model_path)
    assert sorted(trace.values) == list(range(6, 12))
    assert min(trace.values[6]) == pytest.approx(callback.schedule.value_at(6)) != 1
    assert callback.schedule.last_step == 12


class Adversaries(Classifier):
    """Two optimizers that the module steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(10, 1)

    def training_step(self, batch: list[Tensor], index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.critic(self.network(batch[0])).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.network, self.critic)]


def test_of_two_optimizers_the_first_moves_the_schedule(tmp_path: Path) -> None:
    callback = DropBlockCallback((-2, -1), **SMALL)
    fit = trainer(tmp_path, callback)
    fit.fit(Adversaries(), loader())
    assert fit.global_step == 24
    assert callback.schedule.last_step == 12 == callback.schedule.total_steps


def test_early_stopping_leaves_the_schedule_where_it_stood(tmp_path: Path) -> None:
    callback = DropBlockCallback((-2, -1), **SMALL)
    fit = trainer(tmp_path, callback, max_epochs=10, max_steps=7)
    fit.fit(Classifier(), loader())
    assert callback.schedule.last_step == 7
    fit = trainer(
        tmp_path,
        callback := DropBlockCallback((-2, -1), **SMALL),
        lightning.callbacks.EarlyStopping("accuracy", mode="min", patience=0, check_on_train_epoch_end=False),
        max_epochs=50,
    )
    torch.manual_seed(0)
    fit.fit(Classifier(), loader(), loader())
    assert callback.schedule.last_step == fit.global_step < 300
    assert callback.schedule.total_steps == 300
    # After the fit the optimizer no longer moves the schedule.
    fit.optimizers[0].step()
    assert callback.schedule.last_step == fit.global_step


def test_sites_on_layers_that_were_converted_after_the_setup_are_injected_again(tmp_path: Path) -> None:
    """With ``sync_batchnorm=True`` strategies convert layers after the setup of callbacks, before the fit starts."""

    class Converting(lightning.Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            for name, child in list(pl_module.network.named_modules()):
                if isinstance(child, nn.BatchNorm2d):
                    converted = nn.BatchNorm2d(child.num_features)
                    converted.load_state_dict(child.state_dict())
                    pl_module.network.set_submodule(name, converted)
            assert not all(site.live for site in dropblock_sites(pl_module))

    module, trace = Classifier(), Trace()
    trainer(tmp_path, Converting(), DropBlockCallback((-2, -1), **SMALL), trace).fit(module, loader())
    check_dropblock(module)
    assert all(value < 1 for value in trace.values[11])


def test_networks_built_in_configure_model_are_injected_after_it(tmp_path: Path) -> None:
    class Late(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = None

        def configure_model(self) -> None:
            if self.network is None:
                self.network = CifarResNet(1)

    module = Late()
    trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL), max_epochs=1).fit(module, loader())
    assert len(dropblock_sites(module)) > 0


def test_a_module_that_injects_itself_is_scheduled(tmp_path: Path) -> None:
    module = Classifier()
    inject_dropblock(module.network, (-1,), **SMALL)
    callback = DropBlockCallback(None, schedule={"mode": "cosine", "total_steps": 100})
    trainer(tmp_path, callback, max_epochs=1).fit(module, loader())
    assert callback.schedule.last_step == 6
    assert {site.stage for site in dropblock_sites(module)} == {3}


def test_a_module_that_was_injected_elsewhere_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    inject_dropblock(module.network, (-1,), **SMALL)
    fit = trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL))
    with pytest.raises(RuntimeError, match="3 DropBlocks that this callback did not inject; pass stages=None"):
        fit.fit(module, loader())


def test_a_compiled_module_trains_through_every_site(tmp_path: Path, caplog) -> None:
    torch._dynamo.reset()
    module = Classifier()
    module.network.compile(backend="aot_eager", fullgraph=True)
    with pytest.raises(DropBlockInjectError, match="inject first, then compile"):
        trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL), max_epochs=1).fit(module, loader())

    class Compiling(Classifier):
        def setup(self, stage: str) -> None:  # after the callbacks' setup
            self.network.compile(backend="aot_eager", fullgraph=True)

    callback = DropBlockCallback((-2, -1), **SMALL)
    with caplog.at_level(logging.INFO, "dropblock_inject"):
        trainer(tmp_path, callback, max_epochs=1).fit(Compiling(), loader())
    assert "DropBlocks took part in the training by step 1" in caplog.text
    assert callback.schedule.last_step == 6


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (lambda net: net.stage3.eval(), r"stage3\.0\.drop_branch1: ran in eval mode or paused only"),
        (lambda net: setattr(net, "stage3", nn.AvgPool2d(2)), "no longer take part in the forward pass"),
    ],
)
def test_dropblock_that_is_silently_off_is_an_error_in_the_first_step(tmp_path: Path, freeze, message: str) -> None:
    class Freezing(Classifier):
        def on_train_start(self) -> None:
            freeze(self.network)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            freeze(self.network)
            net, images = self.network, batch[0]
            return net.stage3(net.stage2(net.stage1(F.relu(net.bn1(net.conv1(images)))))).mean() * net.fc.weight.sum()

    fit = trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL))
    with pytest.raises(DropBlockInjectError, match=message):
        fit.fit(Freezing(), loader())
    assert fit.global_step <= 1


class TwoNetworks(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = CifarResNet(1).eval()


def test_the_network_among_several_must_be_named(tmp_path: Path) -> None:
    module = TwoNetworks()
    with pytest.raises(ValueError, match=r"2 of its submodules convolve: network, teacher; name the network"):
        trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL)).fit(module, loader())
    trainer(tmp_path, DropBlockCallback((-2, -1), submodule="network", **SMALL), max_epochs=1).fit(module, loader())
    assert not dropblock_sites(module.teacher)
    assert dropblock_sites(module.network)


def test_an_endless_training_asks_for_its_length(tmp_path: Path) -> None:
    fit = trainer(tmp_path, DropBlockCallback((-2, -1), **SMALL), max_epochs=-1)
    with pytest.raises(
        ValueError, match=r"does not know how many optimizer steps .* schedule=\{'total_steps': \.\.\.\}"
    ):
        fit.fit(Classifier(), loader())


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="schedule must be a mapping"):
        DropBlockCallback(schedule=KeepProbSchedule)


def test_no_stages_reach_every_block_if_something_is_asked_for(tmp_path: Path) -> None:
    """Without any option stages=None means that other code injects."""
    module = Classifier()
    trainer(tmp_path, DropBlockCallback(None, **{**SMALL, "include": "*conv1"}), max_epochs=1).fit(module, loader())
    sites = dropblock_sites(module)
    assert {site.part for site in sites} == {"trunk", "stem"}


def test_two_fits_of_one_module_inject_once(tmp_path: Path) -> None:
    module, callback = Classifier(), DropBlockCallback((-2, -1), **SMALL)
    for epochs in (1, 1):
        trainer(tmp_path, callback, max_epochs=epochs).fit(module, loader())
        assert callback.schedule.last_step == 6
