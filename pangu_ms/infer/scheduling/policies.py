"""The policies by name, as options and requests of a server give them."""

from collections.abc import Callable
from dataclasses import dataclass

from pangu_ms.infer.scheduling.continuous import FirstCome, HighestResponseRatio, LongestFirst, ShortestFirst
from pangu_ms.infer.scheduling.state import Scheduler
from pangu_ms.infer.scheduling.static_batches import PUBLISHED_BATCH_SIZES, SortedBatches, Static, StaticBins


@dataclass(frozen=True)
class Settings:
    """What a user may set of a policy; each policy takes what concerns it.

    Attributes:
        max_wait: of the aging of `sjf`, on the caller's clock.
        group_size: requests that static batches are sorted in.
        bin_tokens: width of a bin of predicted lengths; 50 as in the paper (spec G1.1).
        margin_tokens: added to predictions that limit a request.
        seconds_per_step: for `hrrn`; see HighestResponseRatio.
    """

    max_wait: float = 2000.0
    group_size: int = 256
    bin_tokens: int = 50
    margin_tokens: int = 0
    seconds_per_step: float = 1.0


@dataclass(frozen=True)
class Policy:
    """How a policy is made, and how many rows it needs.

    Attributes:
        summary: what it does.
        make: makes its scheduler.
        rows: what bounds the rows of a step at an equal budget of cache tokens. "slots": every row has the capacity
            for the longest request, so there are budget / capacity slots. "budget": rows have the capacity that their
            limits need. "any": the policy is the published one, which does not keep to a budget.
        uses_predictions: whether predicted lengths change what it does.
    """

    summary: str
    make: Callable[[Settings], Scheduler]
    rows: str = "slots"
    uses_predictions: bool = True


POLICIES = {
    "static": Policy("batch by batch in order of arrival", lambda s: Static(), uses_predictions=False),
    "sorted": Policy(
        "batches of equal size from groups sorted by prediction", lambda s: SortedBatches(group_size=s.group_size)
    ),
    "bins": Policy(
        "larger batches of shorter predictions; failures run again from the prompt",
        lambda s: StaticBins(False, s.group_size, s.bin_tokens, s.margin_tokens),
        rows="budget",
    ),
    "bins-resume": Policy(
        "as bins; failures go on from their kept cache, all groups' together at the end",
        lambda s: StaticBins(True, s.group_size, s.bin_tokens, s.margin_tokens, failures_last=True),
        rows="budget",
    ),
    "paper-vbs": Policy(
        "the published batch sizes without limits, whatever cache they need",
        lambda s: StaticBins(False, s.group_size, s.bin_tokens, batch_sizes=PUBLISHED_BATCH_SIZES, limited=False),
        rows="any",
    ),
    "paper": Policy(
        "the published batch sizes with limits; failures run again from the prompt, 16 at a time",
        lambda s: StaticBins(False, s.group_size, s.bin_tokens, batch_sizes=PUBLISHED_BATCH_SIZES),
        rows="any",
    ),
    "fcfs": Policy("continuous: first come, first served", lambda s: FirstCome(), uses_predictions=False),
    "sjf": Policy("continuous: shortest prediction first, with aging", lambda s: ShortestFirst(max_wait=s.max_wait)),
    "hrrn": Policy(
        "continuous: highest (waited + expected) / expected first",
        lambda s: HighestResponseRatio(seconds_per_step=s.seconds_per_step),
    ),
    "ljf": Policy("continuous: longest prediction first, for offline jobs", lambda s: LongestFirst()),
    "reserve": Policy(
        "continuous: first come, first served; rows reserve their predicted tokens and go on from kept cache",
        lambda s: FirstCome(s.bin_tokens, s.margin_tokens),
        rows="budget",
    ),
}
"""The policies by name. `reserve` and the bins need slots that share the cache's rows."""
