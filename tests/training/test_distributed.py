"""Two processes of torchrun, with DDP and FSDP2, one of them killed; the replicas of DataParallel."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from injected import WHERE, assert_live, drops, injected
from networks import EVERY_KIND, NETWORKS, example_for, images_for
from torch import Tensor, nn

from dropblock_inject import KeepProbSchedule, inject_dropblock
from dropblock_inject.ops import functional

ROOT = Path(__file__).parents[2]
STRATEGIES = ["ddp", "fsdp"]


def start(script: Path, *arguments: object, log: Path, restarts: int = 0) -> subprocess.Popen:
    """Starts a script in two processes; their output goes to the file `log`."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as examples/distributed.py says
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with log.open("w") as file:
        return subprocess.Popen(
            [*launcher, "--max-restarts", str(restarts), str(script), *map(str, arguments)],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def finish(launched: subprocess.Popen, log: Path) -> str:
    """Waits for the end; returns the output."""
    try:
        launched.wait(timeout=240)
    finally:
        launched.terminate()  # ends its processes too; does nothing if it has ended
        launched.wait(timeout=60)
    assert launched.returncode == 0, log.read_text()
    return log.read_text()


def records_of(part: str, folder: Path) -> list[dict[str, Any]]:
    """The record of each rank of distributed_worker.py."""
    log = folder / "log"
    finish(start(Path(__file__).with_name("distributed_worker.py"), part, folder, log=log), log)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_one_network_with_masks_of_their_own(strategy: str, tmp_path: Path) -> None:
    first, second = records_of(strategy, tmp_path)

    (masks, again), (others, _) = first["masks"], second["masks"]
    assert len(masks) == 16
    for name, mask in masks.items():
        assert mask.any(), f"{name} dropped nothing"
        assert torch.equal(mask, again[name]), "the mask is no function of the seed: the comparison proves nothing"
        assert not torch.equal(mask, others[name]), f"{name} drops the same on both ranks"

    plain = NETWORKS["own:cifar_resnet"]()
    example = example_for("own:cifar_resnet")
    inject_dropblock(plain, (-2, -1), where=WHERE, block_size=2, example_input=example)
    schedule = KeepProbSchedule(plain, total_steps=5, start=0.8, end=0.5)
    expected = []
    for _ in range(5):
        expected.append(schedule.get_last_keep_prob())
        schedule.step()
    assert first["keep_prob"] == second["keep_prob"] == expected

    torch.testing.assert_close(first["gradients"], first["mean_gradients"])
    torch.testing.assert_close(first["parameters"], second["parameters"], rtol=0, atol=0)
    assert not torch.equal(first["parameters"][0][0], first["parameters"][-1][0])

    assert list(first["state"]) == list(NETWORKS["own:cifar_resnet"]().state_dict())
    NETWORKS["own:cifar_resnet"]().load_state_dict(first["state"], strict=True)


def test_sync_batch_norm_comes_before_the_injection(tmp_path: Path) -> None:
    unconverted = injected("own:cifar_resnet")
    for record in records_of("sync_bn", tmp_path):
        assert record["norms"] == ["SyncBatchNorm"]
        assert record["sites"] == list(drops(unconverted))
        assert record["live"]
        assert record["error"].startswith("DeadSiteError: ")
        assert "SyncBatchNorm" in record["error"]


# A small network, which timm has for tests, and few images: two epochs of 12 steps.
SMALL = ["--model", "test_resnet", "--image-size", "64", "--max-samples", "100", "--batch-size", "4", "--epochs", "2"]
STEPS, SAVE_EVERY = 24, 5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_process_changes_nothing(strategy: str, tmp_path: Path) -> None:
    """The losses of both ranks are equal bit for bit, so the masks are too."""
    arguments = [*SMALL, "--strategy", strategy, "--save-every", SAVE_EVERY, "--output"]
    script = ROOT / "examples" / "distributed.py"
    logs = tmp_path / "log", tmp_path / "killed.log"
    printed = finish(start(script, *arguments, tmp_path / "run", log=logs[0]), logs[0])
    assert "resumed" not in printed

    launched = start(script, *arguments, tmp_path / "killed", log=logs[1], restarts=1)
    try:
        victim = wait_for_step(8, tmp_path / "killed" / "rank1.jsonl", launched)
        os.kill(victim, signal.SIGKILL)
    finally:
        printed = finish(launched, logs[1])
    (resumed,) = re.findall(rf"resumed  after step (\d+) of {STEPS}\n", printed)
    assert 0 < int(resumed) < STEPS

    for rank in range(2):
        expected, processes = notes(tmp_path / "run" / f"rank{rank}.jsonl")
        assert list(expected) == list(range(1, STEPS + 1))
        assert len(processes) == 1
        found, processes = notes(tmp_path / "killed" / f"rank{rank}.jsonl")
        assert found == expected
        assert len(processes) == 2, "the run was not interrupted: the comparison proves nothing"

    last, killed = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("run", "killed"))
    assert last["schedule"]["last_step"] == killed["schedule"]["last_step"] == STEPS
    torch.testing.assert_close(killed["model"], last["model"], rtol=0, atol=0)


def wait_for_step(step: int, path: Path, launched: subprocess.Popen) -> int:
    """The id of the process that did the step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launched.poll() is None:
        for line in path.read_text().splitlines() if path.exists() else []:
            note = json.loads(line)
            if note["step"] == step:
                return note["pid"]
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def notes(path: Path) -> tuple[dict[int, tuple[float, float]], set[int]]:
    """Loss and keep_prob of each step when it was last done, and the ids of the processes."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["step"]: (line["loss"], line["keep_prob"]) for line in lines}
    return dict(sorted(found.items())), {line["pid"] for line in lines}


@pytest.fixture
def replicas_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch copy the tensors of its replicas on the CPU instead of sending them to GPUs."""

    def copies(tensors: list[Tensor], devices: Sequence[int], detach: bool = False) -> list[list[Tensor]]:
        return [[tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices]

    replicate = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, optional: device)


class InReplica(nn.Module):
    """Replicates a network at each call, as DataParallel does, and runs a replica."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return nn.parallel.replicate(self.net, [0, 1])[1](images)


@pytest.mark.parametrize("wrap", [nn.DataParallel, InReplica])
@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.usefixtures("replicas_on_the_cpu")
def test_data_parallel_around_it(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = injected(name)
    assert_live(wrap(net), images_for(name), len(drops(net)))


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.usefixtures("replicas_on_the_cpu")
def test_replicas_in_threads_compute_the_same_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads wait for each other before every convolution, so all are at the same place of the network."""
    net = injected(name)
    KeepProbSchedule(net, total_steps=1, start=0.5)
    images = [images_for(name) for _ in range(3)]
    # On the CPU all threads draw from one generator. Here each has a seed of its own, as GPUs have.
    seeds: dict[int, int] = {}
    monkeypatch.setattr(functional, "_random_seed", lambda *_: torch.tensor(seeds[threading.get_ident()]))

    def train(together: bool) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
        copied = copy.deepcopy(net)
        replicas = nn.parallel.replicate(copied, range(len(images)))
        barrier = threading.Barrier(len(images) if together else 1, timeout=30)

        def meet(*_: object) -> None:
            barrier.wait()

        for module in copied.modules():  # the replicas share its hooks
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(meet)

        def work(number: int) -> Tensor:
            seeds[threading.get_ident()] = number
            return replicas[number](images[number])

        with ThreadPoolExecutor(len(images) if together else 1) as pool:
            outputs = list(pool.map(work, range(len(images))))
        parameters = list(copied.parameters())
        return outputs, [torch.autograd.grad(output.square().mean(), parameters) for output in outputs]

    torch.testing.assert_close(train(together=True), train(together=False), rtol=0, atol=0)
