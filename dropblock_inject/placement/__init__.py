"""A request and the anatomy of a model turned into sites and a plan.

May import: surgery, ops, anatomy, tracing, errors.
"""
