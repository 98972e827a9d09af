"""Continuous batching: requests are admitted, generated and finished independently of each other.

An Engine owns a Decoder, whose graph has slots; a scheduler says which request gets a slot, and what each step
computes; each request has a Continuation. None of them knows the others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.continuation import Continuation, Request
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.prefix_cache import PrefixCache
from pangu_ms.infer.scheduling.continuous import FirstCome
from pangu_ms.infer.scheduling.slots import SlotTable
from pangu_ms.infer.scheduling.state import Running, Scheduler, StepPlan, Waiting

if TYPE_CHECKING:
    from pangu_ms.infer.scoring import ContinuationScore, Scorer

OnToken = Callable[[Continuation], None]


@dataclass
class Counts:
    """What an engine has done."""

    steps: int = 0
    decoded_rows: int = 0
    """Tokens that were computed in slots, one a step."""
    prompt_tokens: int = 0
    """Tokens that were computed in chunks."""
    new_tokens: int = 0
    """Tokens of continuations."""


class Engine:
    """Generates the continuations of any number of requests.

    One thread calls its methods. A request gets the tokens that it would get alone, whatever else is generated: slots
    do not read each other, and its random numbers are its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        scheduler: Scheduler | None = None,
        prefix_cache: bool = True,
        clock: Callable[[], float] | None = None,
        budget_tokens: int | None = None,
    ):
        """Make an engine with empty slots.

        Args:
            decoder: computes the model.
            tokenizer: its stop tokens end continuations.
            scheduler: by default first come, first served.
            prefix_cache: whether beginnings of prompts that a slot holds are copied instead of computed.
            clock: of arrivals, for the scheduler; by default the number of steps.
            budget_tokens: the most tokens of all requests that run; None: every slot may be full.
        """
        self.decoder, self.tokenizer, self.scheduler = decoder, tokenizer, scheduler or FirstCome()
        shape = decoder.shape
        rows = shape.batch_size, shape.max_length, shape.chunk
        self.table = SlotTable(*rows, budget_tokens, self.scheduler.keeps_cache)
        self.prefixes = PrefixCache(shape.batch_size, shape.chunk) if prefix_cache and decoder.caches else None
        self.counts, self._clock, self._submitted = Counts(), clock, 0
        self._continuations: dict[int, Continuation] = {}
        self._on_token: dict[int, OnToken] = {}
        self._kept: dict[int, list[np.ndarray]] = {}
        """Cached rows of requests that will go on in another slot."""
        self._scorer: Scorer | None = None

    def now(self) -> float:
        """Time on the engine's clock."""
        return self._clock() if self._clock else float(self.counts.steps)

    def submit(self, request: Request, on_token: OnToken | None = None) -> int:
        """Add a request; returns its number, by which `cancel` and `step` name it.

        Args:
            request: what to continue.
            on_token: called with the continuation behind each new token.

        Raises:
            GenerationError: the prompt is empty, leaves no room for a new token or has a token that is none, there is
                no such domain, the bias is of no token, or a package has no log-probabilities of prompts.
        """
        where = request.index + 1
        self.decoder.shape.require_room_for(len(request.prompt), where)
        known = self.tokenizer.vocab_size
        for position, token in enumerate(request.prompt):
            if not 0 <= token < known:
                raise GenerationError(
                    f"prompt {where}: token {token} at position {position}: must be 0 to {known - 1}; make it with the"
                    " model's tokenizer"
                )
        self.decoder.domains.require_index(request.domain, f"prompt {where}: ")
        if request.prompt_logprobs >= 0 and not self.decoder.has_all_logits:
            raise GenerationError(
                "there are no log-probabilities of prompts: the graph of a MindIR package computes the logits of last"
                " tokens alone; use the checkpoint that the package was made from"
            )
        continuation = Continuation(request, self.tokenizer)
        number, self._submitted = self._submitted, self._submitted + 1
        self.table.submit(
            Waiting(
                number,
                len(request.prompt),
                request.sampling.max_new_tokens,
                request.predicted_tokens,
                request.arrival,
                request.template,
            )
        )
        self._continuations[number] = continuation
        if on_token:
            self._on_token[number] = on_token
        return number

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return self.table.busy

    def cancel(self, number: int) -> Continuation:
        """End a request; its slot is free in the next step. Returns what it has so far."""
        self.table.cancel(number)
        self._on_token.pop(number, None)
        self._kept.pop(number, None)
        continuation = self._continuations.pop(number)
        continuation.finish_reason = "cancelled"
        return continuation

    def run(self) -> Iterator[tuple[int, Continuation]]:
        """Run until no request is left; yields (number, continuation) of each as it ends."""
        while self.busy:
            yield from self.step()

    def step(self) -> list[tuple[int, Continuation]]:
        """Compute one step; returns the requests that end with it. Without requests it does nothing."""
        if not self.busy:
            return []
        plan = self._plan()
        chunk = self._chunk_of(plan)
        tokens = {slot: self._of_slot(slot).ids[-1] for slot in plan.decode}
        if chunk and self._of_slot(chunk[0]).request.prompt_logprobs >= 0:
            logits, of_chunk = self.decoder.append_with_all_logits(tokens, chunk)
            self._of_slot(chunk[0]).read(of_chunk)
        else:
            logits = self.decoder.append(tokens, chunk)
        self._count(plan)
        if self.prefixes:
            for slot, token in tokens.items():
                self.prefixes.append(slot, (token,))
            if chunk:
                self.prefixes.append(*chunk)
        return self._advance(plan, logits)

    def score(
        self, prefix: Sequence[int], continuations: Iterable[Sequence[int]], domain: int | None = None
    ) -> "list[ContinuationScore]":
        """The log-probabilities of continuations of a prefix, between two steps, in a free slot; see `Scorer.score`.

        The first call compiles graphs of its own. Whole chunks of the prefix that a slot holds are copied, as those of
        prompts are, and what was scored is kept for further prefixes and prompts. Many items are scored faster by a
        Scorer, which puts them in order first.

        Raises:
            GenerationError: no slot is free; see also `Scorer.score_all`.
        """
        from pangu_ms.infer.scoring import Scorer  # imported here, since a MindIR package's run.pyz does not score

        free = [slot for slot, running in enumerate(self.table.slots) if running is None]
        if not free:
            raise GenerationError("score: requests run in all slots; score when one has ended, or use more slots")
        scorer = self._scorer = self._scorer or Scorer(self.decoder, self.tokenizer)
        slot = free[0]
        scorer.forget(slot)
        if not self.prefixes:
            return scorer.score(prefix, continuations, domain)
        domain = self._index_of(domain)
        source, length = self.prefixes.find(prefix, domain)
        self.prefixes.forget(slot)
        if length:
            self.decoder.copy([source], [slot], length)
            scorer.hold(prefix[:length], domain)
        scores = scorer.score(prefix, continuations, domain)
        self.prefixes.start(slot, domain)
        self.prefixes.append(slot, scorer.held)
        self.prefixes.prompt_tokens += len(prefix)
        self.prefixes.reused_tokens += length
        return scores

    def _plan(self) -> StepPlan:
        """The next step's plan, whose admissions are carried out."""
        while True:
            state = self.table.state(self.now())
            plan = self.scheduler.plan(state)
            if plan.idle:
                raise RuntimeError(f"{self.scheduler}: requests wait, and nothing is admitted or computed")
            for running in self.table.admit(state, plan):
                self._start(running)
            # A prompt whose beginning was copied goes on behind it: the planned chunk is another one now.
            if not self._reuse_prefix(plan):
                return plan

    def _start(self, running: Running) -> None:
        continuation = self._continuations[running.id]
        request = continuation.request
        self.decoder.start(running.slot, request.domain)
        if self.prefixes:
            self.prefixes.start(running.slot, self._index_of(request.domain))
        if running.generated:
            self.decoder.restore(running.slot, self._kept.pop(running.id))
            if self.prefixes:
                self.prefixes.append(running.slot, [*request.prompt, *continuation.ids[:-1]])
            return
        continuation.begin()
        if self.prefixes:
            self.prefixes.prompt_tokens += running.prompt_tokens

    def _reuse_prefix(self, plan: StepPlan) -> bool:
        """Copy what another slot holds of the prompt whose chunk comes next; whether there was something."""
        if not (self.prefixes and plan.prefill):
            return False
        running = self._running(plan.prefill.slot)
        continuation = self._continuations[running.id]
        request = continuation.request
        if request.prompt_logprobs >= 0:  # each token's logits are wanted
            return False
        source, length = self.prefixes.find(request.prompt, self._index_of(request.domain), running.slot)
        if length <= running.prefilled:
            return False
        self.decoder.copy([source], [running.slot], length)
        self.prefixes.copied(source, running.slot, length)
        self.prefixes.reused_tokens += length - running.prefilled
        continuation.cached_tokens = length
        self.table.skip_to(running.slot, length)
        return True

    def _index_of(self, domain: int | None) -> int:
        """A domain's index; None stands for the default domain."""
        return self.decoder.domains.index() if domain is None else domain

    def _chunk_of(self, plan: StepPlan) -> tuple[int, tuple[int, ...]] | None:
        if not plan.prefill:
            return None
        slot, start, number = plan.prefill
        return slot, self._of_slot(slot).request.prompt[start : start + number]

    def _running(self, slot: int) -> Running:
        running = self.table.slots[slot]
        assert running, f"slot {slot} is free"
        return running

    def _of_slot(self, slot: int) -> Continuation:
        return self._continuations[self._running(slot).id]

    def _count(self, plan: StepPlan) -> None:
        self.counts.steps += 1
        self.counts.decoded_rows += len(plan.decode)
        self.counts.prompt_tokens += plan.prefill.num_tokens if plan.prefill else 0

    def _advance(self, plan: StepPlan, logits: np.ndarray) -> list[tuple[int, Continuation]]:
        """Choose the new tokens, and end the requests that end with them."""
        with_token = list(plan.decode)
        if plan.prefill:
            slot, start, number = plan.prefill
            if start + number == len(self._of_slot(slot).request.prompt):
                with_token.append(slot)
        stopped = []
        for slot in with_token:
            running, continuation = self._running(slot), self._of_slot(slot)
            room = self.table.most_new_tokens(running.id)
            continuation.choose(logits[slot], room)
            self.counts.new_tokens += not continuation.request.prompt_only
            if continuation.finish_reason:
                stopped.append(slot)
            if continuation.error:
                self._clear(slot)
            if on_token := self._on_token.get(running.id):
                on_token(continuation)
        ended = self.table.advance(plan, stopped)
        for running in ended.returned if self.scheduler.keeps_cache else ():
            self._kept[running.id] = self.decoder.save(running.slot)
        finished = []
        for running in ended.finished:
            self._on_token.pop(running.id, None)
            finished.append((running.id, self._continuations.pop(running.id)))
        return finished

    def _clear(self, slot: int) -> None:
        """Remove rows that are no numbers."""
        self.decoder.clear(slot)
        if self.prefixes:
            self.prefixes.forget(slot)
