"""DropBlock on at inference: Monte Carlo passes, and what they say of the uncertainty of a prediction.

May import: surgery, ops, anatomy, tracing, errors.
"""
