"""Training checkpoints that a kill, a full disk or another file system cannot spoil."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from lightning_fabric.plugins import TorchCheckpointIO


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint, reads it back without pickled code, and only then puts it in the old one's place.

    Lightning's own way goes by the folder for temporary files: where that is another file system, a kill or a full disk
    destroys the checkpoint before, and a folder that cannot be written is passed over in silence.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Save to `path`. Raises OSError if that cannot be, and UnpicklingError for content that could not be resumed from."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        torch.load(part, map_location="meta", weights_only=True)
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
