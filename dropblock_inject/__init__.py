"""DropBlock in one line, in place, in any pretrained timm or torchvision CNN."""

from .anatomy.stages import Stage, find_stages
from .errors import DropBlockInjectError
from .inference.monte_carlo import mc_dropblock
from .inference.predict import mc_predict
from .inference.prediction import Prediction
from .ops.functional import drop_block
from .ops.layer import DropBlock
from .placement.plan import InjectionPlan, InjectionReport, inject_dropblock, plan_dropblock, remove_dropblock
from .surgery.site import Site
from .surgery.status import SiteStatus, check_dropblock, dropblock_disabled, dropblock_sites
from .training.schedule import KeepProbSchedule

__all__ = [
    "DropBlock",
    "DropBlockInjectError",
    "InjectionPlan",
    "InjectionReport",
    "KeepProbSchedule",
    "Prediction",
    "Site",
    "SiteStatus",
    "Stage",
    "check_dropblock",
    "drop_block",
    "dropblock_disabled",
    "dropblock_sites",
    "find_stages",
    "inject_dropblock",
    "mc_dropblock",
    "mc_predict",
    "plan_dropblock",
    "remove_dropblock",
]
