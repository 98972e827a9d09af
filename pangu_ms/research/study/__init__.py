"""Studies, which run several `pangu` commands and compare their results. No mindspore import."""
