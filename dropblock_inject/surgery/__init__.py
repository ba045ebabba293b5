"""Sites put into a model, taken out, found again, and their status; the hooks that lead tensors to them.

May import: ops, errors.
"""
