"""Pictures of masks, of feature maps under them, of a schedule, of stages and of a plan.

Each function returns a matplotlib figure and shows nothing: ``figure.savefig("masks.png")``.

May import: training, placement, surgery, ops, anatomy, tracing, errors.
"""

from .canvas import PlotError
from .masks import plot_feature_maps, plot_masks
from .plan import plot_plan
from .schedule import plot_schedule
from .stages import plot_stages

__all__ = ["PlotError", "plot_feature_maps", "plot_masks", "plot_plan", "plot_schedule", "plot_stages"]
