"""Callbacks for trainers, one file for each; nothing imports them, for they need the trainer's library.

May import: training, placement, surgery, errors.
"""
