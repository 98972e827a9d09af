"""Studies: several runs of `pangu` commands whose results are set beside each other. No mindspore import."""
