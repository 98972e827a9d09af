"""Pangu Pro MoE: Mixture of Grouped Experts (MoGE)."""
