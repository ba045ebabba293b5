"""keep_prob over the training, and a look at whether every site drops.

May import: surgery, ops, errors.
"""
