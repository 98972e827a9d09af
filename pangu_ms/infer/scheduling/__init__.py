"""Which request is decoded when: policies as pure functions of a state, a simulator, and predictors of lengths. numpy
only, no mindspore."""
