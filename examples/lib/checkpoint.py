"""Files of tensors and plain values, read without trust and written whole or not at all."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_file(path: str | Path) -> Any:
    """What a checkpoint holds; nothing in it is executed."""
    if not Path(path).is_file():
        raise SystemExit(f"error: no file {path}")
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise zipfile.BadZipFile  # a checksum is wrong; torch.load does not look at them
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # there is no telling what a corrupt file leads to
        raise SystemExit(
            f"error: {path} is no readable checkpoint: corrupt, cut off or not made of tensors and plain values"
        ) from None


def write_file(content: Any, path: Path) -> None:
    """Writes a checkpoint; a crash on the way leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
