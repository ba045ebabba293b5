"""The public names of the package, in the order of the API page."""

from . import errors as errors
from . import presets as presets
from .anatomy.stages import Stage, find_stages
from .errors import DropBlockInjectError
from .inference.monte_carlo import mc_dropblock
from .inference.predict import mc_predict
from .inference.prediction import Prediction
from .ops.functional import drop_block
from .ops.layer import DropBlock
from .placement.inject import inject_dropblock, plan_dropblock, remove_dropblock
from .placement.plan import InjectionPlan, InjectionReport
from .surgery.site import Site
from .surgery.status import SiteStatus, check_dropblock, dropblock_disabled, dropblock_sites
from .training.schedule import KeepProbSchedule

__all__ = [  # noqa: RUF022
    "inject_dropblock",
    "plan_dropblock",
    "remove_dropblock",
    "KeepProbSchedule",
    "find_stages",
    "dropblock_sites",
    "check_dropblock",
    "dropblock_disabled",
    "mc_predict",
    "mc_dropblock",
    "DropBlock",
    "drop_block",
    "InjectionPlan",
    "InjectionReport",
    "Site",
    "SiteStatus",
    "Stage",
    "Prediction",
    "DropBlockInjectError",
]
