"""Parameter inheritance: makes a student model from layers, heads, neurons and channels of a larger teacher. Source:
specification E2.3.

units.py        the units that are kept or dropped, and the slices of parameters that belong to each
selection.py    the layers and units that a student keeps
gather.py       makes the student's parameters from the teacher's
fit.py          checks that a student can inherit from a teacher
scores.py       importance of units: norms, Taylor, random
masks.py        importance of units by learned masks
gradients.py    the loss and its derivatives with respect to masks on the units
pipeline.py     `inherit`: makes the student's checkpoint from the teacher's
"""
