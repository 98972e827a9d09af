"""Optimizer steps, which all have the interface `protocol.OptimizerStep`:

train_step.TrainStep    this process has the whole model, alone or as one of a CPU's replicas
rank_step.RankStep      this process is a rank of a plan; MindSpore's compiler shards the graph of the step
rehearsal/execute_step.py has those of `pangu plan execute`, with momentum SGD.

Their graphs: gradients.py (loss and gradients), update.py (unscale, clip, guard, update), whole_batch.py and
micro_batches.py (a whole step in one graph), rank_graph.py (which of them a plan takes).
"""
