"""DropBlock in one line, in place, in any pretrained timm or torchvision CNN."""

from .errors import DropBlockInjectError
from .functional import drop_block
from .layer import DropBlock
from .plan import InjectionPlan, InjectionReport, inject_dropblock, plan_dropblock, remove_dropblock
from .schedule import KeepProbSchedule
from .sites import Site
from .stages import Stage, find_stages
from .status import SiteStatus, check_dropblock, dropblock_disabled, dropblock_sites

__all__ = [
    "DropBlock",
    "DropBlockInjectError",
    "InjectionPlan",
    "InjectionReport",
    "KeepProbSchedule",
    "Site",
    "SiteStatus",
    "Stage",
    "check_dropblock",
    "drop_block",
    "dropblock_disabled",
    "dropblock_sites",
    "find_stages",
    "inject_dropblock",
    "plan_dropblock",
    "remove_dropblock",
]
