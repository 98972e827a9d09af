"""The cost models of plans (memory and time), and the search for the best plan. No mindspore import."""
