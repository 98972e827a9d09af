"""The last hidden state of one token of each sequence, as a graph."""

import mindspore as ms
from mindspore import nn, ops


class LastStates(nn.Cell):
    """The output of the last layer at one position of each sequence."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model, self.pick, self.cast = model, ops.Gather(), ops.Cast()
        self.set_train(False)

    def construct(self, ids_BS, positions_BS, segments_BS, rows_B, *extra):
        """Compute the states.

        Args:
            ids_BS, positions_BS, segments_BS: int32; see the model's `hidden_states`.
            rows_B: int32, which of the B * S tokens.
            extra: the family's extra inputs.

        Returns:
            float32 [B, E].
        """
        last_BSE = self.model.hidden_states(ids_BS, positions_BS, segments_BS, *extra)[-1]
        return self.cast(self.pick(last_BSE.reshape(-1, last_BSE.shape[-1]), rows_B, 0), ms.float32)
