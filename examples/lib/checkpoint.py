"""Files of tensors and plain values, read without trust and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_file(path: str | Path) -> Any:
    """The content of a checkpoint; nothing in it is executed."""
    if not Path(path).is_file():
        raise SystemExit(f"error: no file {path}")
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise zipfile.BadZipFile  # a checksum is wrong; torch.load does not look at them
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a corrupt file can lead to any error
        raise SystemExit(
            f"error: {path} is no readable checkpoint: corrupt, cut off or not made of tensors and plain values"
        ) from None


def write_file(content: Any, path: Path) -> None:
    """Writes a checkpoint. If that fails, the file that was there before is still there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch raises the latter over the former
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        kept = "; the file from before is unchanged" if path.exists() else ""
        raise SystemExit(f"error: {path} cannot be written: {cause.strerror or cause}{kept}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
