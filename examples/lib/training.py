"""The state of a training, saved after each epoch, so that a resumed training equals an uninterrupted one."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dropblock_inject.errors import DropBlockInjectError
from lib.checkpoint import write_file
from lib.command_line import settings_of


def random_state(device: str | torch.device) -> dict[str, Tensor]:
    """The state of the random numbers: the order of the images, their crops and the masks of DropBlock follow it."""
    cuda = torch.device(device).type == "cuda"
    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state(device)} if cuda else {})}


def set_random_state(state: dict[str, Tensor], device: str | torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.device(device).type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def finite(loss: float) -> float:
    """The loss, if it is a number; else the script ends."""
    if not math.isfinite(loss):
        raise SystemExit("error: the loss is infinite or not a number; try a smaller --lr")
    return loss


class Training:
    """Everything that changes in a training, in --output/last.pt after each epoch.

    As a context manager it says how to go on after an interruption.

    Args:
        args: the options of the script.
        parts: the objects with a state, among them `model`; they are loaded in this order.
    """

    def __init__(self, args: argparse.Namespace, **parts: Any) -> None:
        self.args = args
        self.parts = parts
        self.epoch = 0  # how many are done
        self.folder = Path(args.output)

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from the content of a last.pt."""
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.epoch = int(state["epoch"])
            set_random_state(state["random"], self.args.device)
        except (DropBlockInjectError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise SystemExit(f"error: {self.args.resume} does not fit: {' '.join(str(error).split())[:300]}") from None
        print(f"resumed  after epoch {self.epoch} of {self.args.epochs}")

    def end_epoch(self) -> None:
        """Counts the epoch and saves the state after it."""
        self.epoch += 1
        states = {name: part.state_dict() for name, part in self.parts.items()}
        state = {**states, "random": random_state(self.args.device), "epoch": self.epoch}
        write_file({**state, "settings": settings_of(self.args)}, self.folder / "last.pt")

    def save_weights(self) -> Path:
        """Writes model.pt: the weights, with the keys of the plain model although DropBlock is still inside."""
        write_file(self.parts["model"].state_dict(), self.folder / "model.pt")
        return self.folder / "model.pt"

    def __enter__(self) -> Training:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is KeyboardInterrupt:
            advice = (
                f"go on with --resume {self.folder / 'last.pt'}" if self.epoch else "there is nothing to resume yet"
            )
            raise SystemExit(f"\ninterrupted in epoch {self.epoch + 1}; {advice}") from None
