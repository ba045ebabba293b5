"""Callbacks for trainers, one file for each. The package imports none of them, because each needs its library.

May import: training, placement, surgery, errors.
"""
