"""As pangu_ms.rehearsal.execute_child, with a loss whose gradient counts tokens: the sum of what the experts of the
last layer return, so that the gradient of the bias of an expert's results is the number of tokens that came to it."""

import sys

from mindspore import ops

from pangu_ms.models.common.loss import TokenLoss
from pangu_ms.rehearsal import execute_child
from pangu_ms.train.steps import rank_graph


class Tokens(TokenLoss):
    """The sum of the experts' results, and the number of positions that the mask counts."""

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, domain_B, key):
        """See TokenLoss."""
        ids_BS = ids_BS1[:, :-1]
        x_BSE = self.model.embed(ids_BS, positions_BS, key, domain_B)
        y_BSE = self.model.query_layer.ffn(x_BSE, ids_BS, domain_B)
        return self.total(y_BSE), self.total(mask_BS) + 0.0 * ops.ReduceSum()(y_BSE)


if __name__ == "__main__":
    rank_graph.TokenLoss = Tokens
    sys.exit(execute_child.main(sys.argv[1:]))
