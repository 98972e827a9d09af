"""Everything about many devices. mesh, layout, rules, plan, flops, memory, time, search and strategy files need no
mindspore."""
