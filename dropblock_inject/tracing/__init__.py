"""One forward pass without data: the operations, the module calls around them, the shapes.

May import: errors.
"""
