"""What becomes of a plan whose answers tell of another epoch, and plans made of plans. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kvcluster import phases
from kvcluster.errors import DeleteFailed, KvclusterError, NodeBehind, OutcomeUnknown
from kvcluster.following.epochs import Watch, WatchFetch, tell_epoch, watch
from kvcluster.plan import Failures, Plan
from kvcluster.protocol.requests import Commands, Deletes, Fetch, Lookups, Request

if TYPE_CHECKING:
    from kvcluster.following.planner import FollowingPlanner

T = TypeVar("T")
U = TypeVar("U")


class Chain(Plan[U]):
    """A plan, and what follows from its result.

    :param once: whether its effect depends on what is there, so that nobody may repeat it
    :param attempt: hand a `DeleteFailed` to ``then`` instead of raising it
    """

    __slots__ = ("attempt", "once", "plan", "then")

    def __init__(self, plan: Plan[Any], then: Callable[[Any], U | Plan[U]], once: bool = False, attempt: bool = False) -> None:
        super().__init__(plan.namespace, plan.requests)
        self.plan = plan
        self.then = then
        self.attempt = attempt
        self.once: bool = once or (isinstance(plan, Chain) and plan.once)

    def finish(self, failures: Failures) -> U | Plan[U]:
        """What follows from the plan's result."""
        try:
            outcome = self.plan.finish(failures)
        except DeleteFailed as error:
            if not self.attempt:
                raise
            outcome = error
        if isinstance(outcome, Plan):
            return Chain(outcome, self.then, self.once, self.attempt)
        return self.then(outcome)


class Removal(Plan[bool]):
    """Deletes whose result is whether all nodes were told; those that were not are owed them."""

    __slots__ = ()

    def finish(self, failures: Failures) -> bool:
        """Whether all were told."""
        return not failures


class Watched(Plan[T]):
    """A plan whose answers bring their nodes' epochs.

    :param planner: the one that made it
    :param again: makes the command's plan anew, for another planner; None where that cannot be done, and a node whose answer tells
        of a newer epoch has failed
    :param keys: the wire keys that it stores; a read, which stores none, puts right what it found by the way before it is made anew
    """

    __slots__ = ("again", "keys", "late", "plan", "planner", "restarted", "shaken", "spent", "watches", "wrote")

    def __init__(
        self,
        plan: Plan[T],
        planner: FollowingPlanner,
        again: Callable[[FollowingPlanner], Plan[T]] | None,
        keys: Sequence[bytes] = (),
    ) -> None:
        self.watches = {address: watch(request) for address, request in plan.requests.items()}
        fetches = {address: request for address, request in self.watches.items() if isinstance(request, Fetch)}
        plan.requests = {**plan.requests, **fetches}
        super().__init__(plan.namespace, self.watches)
        self.plan = plan
        self.planner = planner
        self.again = again
        self.keys = keys
        self.late = False  # whether an answer told of a newer epoch
        self.shaken = False  # whether a node did not answer, which may be because it has left the cluster
        self.spent = False  # whether what may be done once was done
        self.restarted: set[str] = set()
        self.wrote: set[str] = set()

    def finish(self, failures: Failures) -> T | Plan[T]:
        """The plan's result, its next plan, or what is to be done first about an epoch."""
        known = dict(failures)
        late = self.judge(known)
        once = isinstance(self.plan, Chain) and self.plan.once
        if late is not None and once:
            return Refetch(self, None, _unknown(late), repeat=False)
        self.late = self.late or (late is not None and not self.spent)
        self.shaken = self.shaken or bool(known)
        self.spent = self.spent or once
        outcome: T | Plan[T] | None = None
        error: KvclusterError | None = None
        try:
            outcome = self.plan.finish(known)
        except KvclusterError as raised:
            error = raised
        if isinstance(outcome, Plan) and not (self.late and self.keys):
            return self._followed_by(outcome)
        if self.late or self.restarted or (self.shaken and not self.spent):
            return Refetch(self, cast(T, outcome), error)
        if error is not None:
            raise error
        return cast(T, outcome)

    def _followed_by(self, plan: Plan[T]) -> Watched[T]:
        following = Watched(plan, self.planner, self.again, self.keys)
        following.late, following.shaken, following.spent = self.late, self.shaken, self.spent
        following.restarted, following.wrote = self.restarted, self.wrote
        return following

    def judge(self, failures: dict[str, KvclusterError]) -> str | None:
        """Look at the epochs: add what nodes that are behind amount to, and return a node that told of a newer one."""
        late = None
        if self.keys:
            self.wrote.update(self.watches)
        for address, request in self.watches.items():
            if address in failures:
                continue
            match phases.verdict(self.planner.epoch, request.epoch):
                case "reload":
                    late = address
                    if self.again is None:
                        failures[address] = _unknown(address)
                        _forget(request)
                case "restarted" | "lagging":
                    self.restarted.add(address)
                case "behind":
                    failures[address] = NodeBehind(
                        address,
                        f"has epoch {request.epoch}, and the cluster {self.planner.epoch}: it was cut off during a resize and may "
                        "hold what was deleted since. Flush it",
                    )
                    _forget(request)
        return late

    def distrusted(self) -> Plan[T]:
        """What is left of a plan that cannot be made again and whose answers are not to be trusted.

        :raises OutcomeUnknown: where it has changed something
        """
        if self.spent:
            raise _unknown(min(self.restarted))
        for request in self.watches.values():
            _forget(request)
        return self.plan

    def leftovers(self, planner: FollowingPlanner) -> dict[str, list[bytes]]:
        """What was written to nodes that do not own it by another planner's rules, by their addresses."""
        found = {address: [wire for wire in self.keys if address not in planner.owners(wire)] for address in sorted(self.wrote)}
        return {address: wires for address, wires in found.items() if wires}


def _unknown(address: str) -> OutcomeUnknown:
    return OutcomeUnknown(address, "was asked just as the cluster was resized; whether that counts is unknown")


def _forget(request: Watch | WatchFetch) -> None:
    """Take back what a read has filed."""
    if isinstance(request, WatchFetch):
        request.reset()
    elif isinstance(request.inner, Lookups):
        for name in request.inner.names:
            request.inner.values.pop(name, None)


def renewed(plan: Plan[T], base: FollowingPlanner) -> T | Plan[T]:
    """A plan of which nothing was sent yet, made again where the client has a newer topology than it was made for.

    :param base: the client's planner now
    """
    if not isinstance(plan, Watched) or plan.planner.epoch >= base.epoch:
        return plan
    if plan.again is None:
        return plan.plan.finish({address: _unknown(address) for address in plan.requests})
    return plan.again(plan.planner.moved_to(base))


class Refetch(Plan[T]):
    """The source is to be asked for the topology, because of what the nodes answered; the shell does that, then calls `resume`.

    ``late`` says that a node told of a newer epoch, ``urgent`` that the source must be read: one did, or lost its own epoch. Else a
    node did not answer, which may be because it has left the cluster.
    """

    __slots__ = ("again", "error", "late", "outcome", "urgent", "watched")

    def __init__(self, watched: Watched[T], outcome: T | None, error: KvclusterError | None, repeat: bool = True) -> None:
        super().__init__(watched.namespace, {})
        self.watched = watched
        self.outcome = outcome
        self.error = error
        self.again = watched.again if repeat and not watched.spent else None
        self.late = watched.late or not repeat
        self.urgent = self.late or bool(watched.restarted)

    @property
    def epoch(self) -> int:
        """The epoch that the command was made for."""
        return self.watched.planner.epoch

    def resume(self, base: FollowingPlanner, trouble: KvclusterError | None = None) -> T | Plan[T]:
        """The command once more where the topology is a newer one, else its outcome.

        :param base: the client's planner now
        :param trouble: why no newer topology could be had
        """
        watched = self.watched
        if base.epoch > self.epoch:
            planner = watched.planner.moved_to(base)
            if leftovers := watched.leftovers(planner):
                removal = Removal(self.namespace, {address: Deletes.of(wires) for address, wires in leftovers.items()})
                return Chain(removal, lambda _: self._again(planner))
            return self._again(planner)
        if self.urgent and trouble is not None:
            # What was done was done by rules that may hold no more, and nobody says which do. Nor is a node told of them.
            if self.again is not None:
                return _failed(self.again(watched.planner), trouble)
            return self._end() if self.late else _failed(watched.distrusted(), trouble)
        if watched.restarted:
            telling = tell_epoch(self.namespace, sorted(watched.restarted), self.epoch)
            return Chain(telling, lambda _: self._end())
        return self._end()

    def _again(self, planner: FollowingPlanner) -> T | Plan[T]:
        return self._end() if self.again is None else self.again(planner)

    def _end(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.outcome)


def _failed(plan: Plan[T], error: KvclusterError) -> T | Plan[T]:
    """What a command gives whose nodes cannot be asked."""
    outcome: Any = plan
    while isinstance(outcome, Plan):
        inner = outcome.plan if isinstance(outcome, Watched) else outcome
        outcome = inner.finish(dict.fromkeys(inner.requests, error))
    return cast(T, outcome)


class Sent(Plan["KvclusterError | None"]):
    """One request to one node, whose replies somebody else reads; the result is its failure."""

    __slots__ = ("address",)

    def __init__(self, namespace: str, address: str, request: Request) -> None:
        super().__init__(namespace, {address: request})
        self.address = address

    def finish(self, failures: Failures) -> KvclusterError | None:
        """The failure, or None."""
        return failures.get(self.address)


class Asked(Plan["Commands | None"]):
    """One request to one node; the result is the request with its replies, or None where the node cannot be asked."""

    __slots__ = ("address",)

    def __init__(self, namespace: str, address: str, request: Commands) -> None:
        super().__init__(namespace, {address: request})
        self.address = address

    def finish(self, failures: Failures) -> Commands | None:
        """The request, or None."""
        return None if failures else cast(Commands, self.requests[self.address])
