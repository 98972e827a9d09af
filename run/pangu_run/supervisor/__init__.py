"""Ranks while they run: started, listened to, judged, ended."""
