from .functional import drop_block
from .layer import DropBlock
from .schedule import KeepProbSchedule
from .status import check_dropblock, dropblock_disabled, dropblock_sites

__all__ = [
    "DropBlock",
    "KeepProbSchedule",
    "check_dropblock",
    "drop_block",
    "dropblock_disabled",
    "dropblock_sites",
]
