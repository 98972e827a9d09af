"""Rank tables: which device of which server has which rank."""

from pangu_run.rank_table.table import Device, Fault, RankTable, Server, check, wait_completed

__all__ = ["Device", "Fault", "RankTable", "Server", "check", "wait_completed"]
