"""Experts in host memory: Expert Computation and Storage Separation (ECSS). Source: specification C4.

expert_store.py     all experts with their moments in host memory or in memory-mapped files, and their updates
working_set.py      the experts that a batch needs, gathered for a graph
offload_step.py     the optimizer step: fetch, compute, update the experts that had tokens
offloaded_model.py  the model of a run, and its checkpoints

A graph holds only a working set: stacks with room for the groups of the domains that a batch has, which are known
before the step. A member of a stack is an expert of a layer or an embedding slot (models/common/stacks.py).
"""
