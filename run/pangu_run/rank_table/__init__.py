"""Rank tables: they assign a rank to each device of each server."""

from pangu_run.rank_table.table import Device, Fault, RankTable, Server, check, wait_completed

__all__ = ["Device", "Fault", "RankTable", "Server", "check", "wait_completed"]
