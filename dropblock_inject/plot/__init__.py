"""Pictures of masks, of feature maps under them, of a schedule, of stages, of a plan and of a prediction's doubts.

Each function returns a matplotlib figure and shows nothing: ``figure.savefig("masks.png")``.

May import: inference, training, placement, surgery, ops, anatomy, tracing, errors.
"""

from .canvas import PlotError
from .masks import plot_feature_maps, plot_masks
from .plan import plot_plan
from .schedule import plot_schedule
from .stages import plot_stages
from .uncertainty import plot_uncertainty

__all__ = [
    "PlotError",
    "plot_feature_maps",
    "plot_masks",
    "plot_plan",
    "plot_schedule",
    "plot_stages",
    "plot_uncertainty",
]
