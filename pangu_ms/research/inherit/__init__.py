"""Parameter inheritance: a student model from the layers, heads, neurons and channels of a larger teacher. Source:
specification E2.3.

units.py        what can be kept or dropped, and how parameters divide into it
selection.py    what of the teacher a student keeps
gather.py       the student's parameters from the teacher's
fit.py          which students a teacher can have
scores.py       importance of units: norms, Taylor, random
masks.py        importance by learned masks
gradients.py    loss and its derivatives in the units' masks
pipeline.py     from checkpoint to checkpoint
cli.py          `pangu model inherit` and `pangu model upgrade`
"""
