"""What a plan costs: memory, time, and the search for the best one. No mindspore import."""
