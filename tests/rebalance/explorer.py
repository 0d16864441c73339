"""Every order in which a few processes can touch one key while it is resized from its old owner, O, to its new one, N.

A world is a database row, the key's item at O and at N, the epochs of both nodes, and some actors, each a process in the middle of
something: a writer, readers that read plainly or through the cache, the migrator, and the coordinator, which may overtake the
migrator as one does that took over from a crashed one. Faults are evictions and restarts. One exchange with one node is one move.
`explore` makes every move in every world it can reach, and looks for a read that returns less than was written, and told so, before
the read began.

What a client decides is not modelled: the rules are `kvcluster.phases`, the very functions that the client and the copying follow.
`Shortcut` bends them one at a time, to show that the search finds what each of them is for.

Values are versions of the row, so "older" is "less". A CAS number is remembered only as long as it is the item's present one,
because a number that has changed once never fits again; fills that a restart separates from their lease are not sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from kvcluster import phases
from kvcluster.phases import Seen, Step

Shortcut = Literal[
    "delete new then old",
    "copy by add",
    "copy by add, tombstones",
    "copy reads before it reserves",
    "copy whatever is there",
    "copy without epoch check",
    "no delete at N in prepare",
    "no delete at O in drain",
    "skip prepare",
    "skip drain",
    "set leaves O",
    "change leaves O",
    "change without promotion",
    "plain-add fills",
    "no barrier",
    "no epoch check",
    "no sweep",
    "redone set leaves what it wrote",
    "no care for a restarted node",
    "skip prepare on the way back",
]

Way = tuple[str, ...]
FORTH: Final[Way] = ("old", "prepare", "migrate", "drain", "new")
BACK: Final[Way] = ("old", "prepare", "migrate", "prepare", "old")
BACK_AND_FORTH: Final[Way] = ("old", "prepare", "migrate", "prepare", "migrate", "drain", "new")


class Item(NamedTuple):
    """What a node holds of the key; ``value`` is None for a lease's placeholder, ``token`` says that its refill was given out."""

    value: int | None
    stale: bool = False
    token: bool = False


class Actor(NamedTuple):
    """One process, and where it stands in what it does; ``todo`` is empty while it does nothing."""

    kind: str
    left: int
    todo: str = ""
    command: str = ""
    at: int = 0
    epoch: int = 0
    floor: int = 0  # what was written, and told so, before a read began
    fresh: int = 0  # the same, soft invalidations included
    value: int = 0
    held: str = ""  # the side whose CAS number it holds
    fits: bool = False  # whether that is still the item's
    debris: str = ""  # a side that it wrote to by rules that had changed
    adds: str = ""  # a restarted node that it is about to tell its epoch


class World(NamedTuple):
    """Everything that a move may depend on."""

    row: int
    done: int
    marked: int
    old: Item | None
    new: Item | None
    old_epoch: int | None
    new_epoch: int | None
    document: int
    old_told: bool
    new_told: bool
    swept: bool
    evictions: int
    restarts: int
    actors: tuple[Actor, ...]


@dataclass(frozen=True)
class Size:
    """How much of everything a search allows: writes, reads, copies, and faults of each kind."""

    commands: tuple[str, ...] = ("delete",)
    writes: int = 1
    readers: tuple[str, ...] = ("plain",)
    reads: int = 1
    copies: int = 1
    evictions: int = 0
    restarts: int = 0
    early: bool = False  # whether readers through the cache win refreshes of values that are still good
    way: Way = FORTH  # the phases, by epoch


class Stale(Exception):
    """A world in which something is wrong; ``.args`` say what, and the moves that led there."""


class Rules:
    """What the actors follow: `kvcluster.phases`, bent by at most one shortcut."""

    def __init__(self, size: Size, shortcut: Shortcut | None = None) -> None:
        self.shortcut = shortcut
        # Whether what nobody deletes stays. A value that is being refreshed is neither copied nor promoted: a change may miss it.
        self.keeps = not size.evictions and not size.restarts and not size.early
        skipped = {"skip prepare": 1, "skip drain": 3, "skip prepare on the way back": 3}.get(shortcut or "")
        self.order = tuple(phase for at, phase in enumerate(size.way) if at != skipped)
        self.migrate = self.order.index("migrate")
        self._steps: dict[tuple[int, str], tuple[Step, ...]] = {}

    def steps(self, epoch: int, command: str) -> tuple[Step, ...]:
        """The steps of a command."""
        found = self._steps.get((epoch, command))
        if found is None:
            self._steps[epoch, command] = found = self._bent(self.order[epoch], command)
        return found

    def _bent(self, phase: Any, command: Any) -> tuple[Step, ...]:
        steps = phases.steps(phase, command)
        match self.shortcut:
            case "delete new then old" if command == "delete":
                return steps[::-1]
            case "no delete at N in prepare" if phase == "prepare":
                return tuple([step for step in steps if step != Step("delete", "N")])
            case "no delete at O in drain" if phase == "drain" and command in ("set", "delete"):
                return tuple([step for step in steps if step != Step("delete", "O")])
            case "set leaves O" if phase in ("migrate", "drain") and command == "set":
                return tuple([step for step in steps if step.action != "delete"])
            case "change leaves O" if phase in ("migrate", "drain") and command == "change":
                return tuple([step for step in steps if step.action != "delete"])
            case "change without promotion" if command == "change":
                return tuple([step for step in steps if step.action != "promote"])
        return steps

    def reserved(self, seen: Seen) -> str:
        """What a copy does after N answered."""
        return phases.reserved(seen)

    def copied(self, seen: Seen) -> str:
        """What a copy does after O answered."""
        return "store" if self.shortcut == "copy whatever is there" and seen.value else phases.copied(seen)

    def verdict(self, mine: int, theirs: int | None) -> str:
        """What an actor makes of a node's epoch."""
        if self.shortcut == "no epoch check":
            return "good"
        if self.shortcut == "no care for a restarted node" and theirs is None:
            return "good"
        return phases.verdict(mine, theirs)


class Move:
    """One world being changed into the next."""

    def __init__(self, world: World, index: int, rules: Rules) -> None:
        self.world = world
        self.fields: dict[str, Any] = {}
        self.actors = list(world.actors)
        self.index = index
        self.rules = rules

    def __getattr__(self, name: str) -> Any:
        return self.fields[name] if name in self.fields else getattr(self.world, name)

    @property
    def me(self) -> Actor:
        return self.actors[self.index]

    def become(self, **changes: Any) -> Move:
        """Change the actor itself."""
        self.actors[self.index] = self.me._replace(**changes)
        return self

    def rest(self) -> Move:
        """Have nothing to do. What an idle client knows of the epoch may be as old as can be."""
        me = self.me
        self.actors[self.index] = Actor(me.kind, me.left, adds=me.adds)
        return self

    def world_after(self) -> World:
        return self.world._replace(actors=tuple(self.actors), **self.fields)

    # -- what a node does

    def item(self, side: str) -> Item | None:
        found: Item | None = self.old if side == "O" else self.new
        return found

    def put(self, side: str, item: Item | None, keeps: bool = False) -> None:
        """Change an item. Unless it ``keeps`` its CAS number, nobody's fits any more."""
        self.fields["old" if side == "O" else "new"] = item
        if not keeps:
            for index, actor in enumerate(self.actors):
                if actor.held == side and actor.fits:
                    self.actors[index] = actor._replace(fits=False)

    def get(self, side: str, lease: bool = False, early: bool = False) -> Seen:
        """``mg k v c``; with N where there is a ``lease``, with a great R where it is ``early``."""
        item = self.item(side)
        if item is None:
            if not lease:
                return Seen()
            self.put(side, Item(None, token=True))
            return Seen(won=True)
        wins = not item.token and (item.stale or early)
        if wins:
            self.put(side, item._replace(token=True), keeps=True)
        return Seen(item.value is not None, wins, item.token, item.stale)

    def hold(self, side: str) -> None:
        """Remember the CAS number of what is there."""
        self.become(held=side, fits=True)

    def fill(self, value: int) -> bool:
        """``ms k C<cas>``."""
        me = self.me
        if not me.fits or self.item(me.held) is None:
            return False
        self.put(me.held, Item(value))
        return True

    def drop(self) -> None:
        """``md k C<cas>``."""
        if self.me.fits:
            self.put(self.me.held, None)

    def mark(self, side: str) -> None:
        """``md k I C<cas>``, of what was seen by this very move or where the number fits."""
        item = self.item(side)
        if item is not None:
            self.put(side, item._replace(stale=True, token=False))

    # -- what the epoch after an answer means

    def agrees(self, side: str) -> bool:
        """Whether what was done counts. If not, the actor knows the present epoch now."""
        theirs = self.old_epoch if side == "O" else self.new_epoch
        verdict = self.rules.verdict(self.me.epoch, theirs)
        if verdict == "restarted":
            if self.document > self.me.epoch:
                verdict = "reload"
            else:
                self.become(adds=f"{side}{self.me.epoch}")
        if verdict == "reload":
            self.become(epoch=self.document)
        return verdict not in ("reload", "behind")

    @property
    def keeps(self) -> bool:
        """Whether the key must be somewhere where a change finds it: nothing can be lost before the phase that reads N alone."""
        world = self.world
        return self.rules.keeps and world.document <= self.rules.migrate and world.row == 1

    def value_of(self, side: str) -> int:
        item = self.item(side)
        assert item is not None
        assert item.value is not None
        return item.value

    def returned(self, value: int, stale: bool = False) -> None:
        """A read ends with a value; ``stale`` says that it was marked so, which the caller learns."""
        floor = self.me.floor if stale else self.me.fresh
        if value < floor:
            raise Stale(f"a read returned {value} after {floor} was written")


def moves(world: World, rules: Rules, size: Size) -> Iterator[tuple[str, World]]:
    """All moves that can be made, and the worlds they lead to."""
    for index, actor in enumerate(world.actors):
        if actor.adds:
            move = Move(world, index, rules)
            side, epoch = actor.adds[0], int(actor.adds[1:])
            field = "old_epoch" if side == "O" else "new_epoch"
            if getattr(world, field) is None:
                move.fields[field] = epoch
            yield f"{actor.kind} adds epoch {epoch} at {side}", move.become(adds="").world_after()
            continue
        for name, move in _ACTS[actor.kind](world, index, actor, rules, size):
            yield f"{actor.kind} {name} (epoch {actor.epoch})", move.world_after()
    yield from _faults(world, rules)


def _faults(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    for side, item in (("O", world.old), ("N", world.new)):
        if world.evictions and item is not None:
            move = Move(world, 0, rules)
            move.put(side, None)
            move.fields["evictions"] = world.evictions - 1
            yield f"{side} evicts", move.world_after()
        if world.restarts:
            move = Move(world, 0, rules)
            move.put(side, None)
            move.fields["restarts"] = world.restarts - 1
            move.fields["old_epoch" if side == "O" else "new_epoch"] = None
            yield f"{side} restarts", move.world_after()


_Moves = Iterator[tuple[str, Move]]


# -- the coordinator


def _coordinator(world: World, index: int, actor: Actor, rules: Rules, size: Size) -> _Moves:
    last = len(rules.order) - 1
    told = world.old_told and world.new_told
    for side, field, flag in (("O", "old_epoch", "old_told"), ("N", "new_epoch", "new_told")):
        if not getattr(world, flag):
            move = Move(world, index, rules)
            present = getattr(world, field)
            if present is None or present < world.document:
                move.fields[field] = world.document
            move.fields[flag] = True
            yield f"tells {side} of epoch {world.document}", move
    if world.document < last and (told or rules.shortcut == "no barrier"):
        move = Move(world, index, rules)
        back = rules.order[world.document + 1] == "old"  # N is no member any more
        move.fields.update(document=world.document + 1, old_told=False, new_told=back)
        yield f"begins {rules.order[world.document + 1]}", move
    if rules.order[world.document] == "new" and told and not world.swept:
        move = Move(world, index, rules)
        if rules.shortcut != "no sweep":
            move.put("O", None)
        move.fields["swept"] = True
        yield "sweeps O", move


# -- the migrator


def _migrator(world: World, index: int, actor: Actor, rules: Rules, size: Size) -> _Moves:
    move = Move(world, index, rules)
    checks = rules.shortcut != "copy without epoch check"
    by_add = rules.shortcut in ("copy by add", "copy by add, tombstones", "copy reads before it reserves")
    if not actor.todo:
        for epoch in [at for at, phase in enumerate(rules.order) if phase == "migrate"] if actor.left else ():
            if world.document > epoch or (world.document == epoch and world.old_told and world.new_told):
                move = Move(world, index, rules)
                yield "begins to copy", move.become(left=actor.left - 1, epoch=epoch, todo="read" if by_add else "reserve")
    elif actor.todo == "reserve":
        seen = move.get("N", lease=True)
        if seen.won:
            move.hold("N")
        if checks and not move.agrees("N"):
            yield "learns at N that it is late", move.rest().become(left=0)
            return
        match rules.reserved(seen):
            case "read":
                yield "reserves at N", move.become(todo="read")
            case "rearm":
                move.mark("N")
                yield "rearms N", move.rest()
            case _:
                yield "skips", move.rest()
    elif actor.todo == "read":
        seen = move.get("O")
        if checks and not move.agrees("O"):
            yield "learns at O that it is late", move.become(todo="give back", left=0)
            return
        value = move.value_of("O") if seen.value else 0
        if seen.won:
            move.mark("O")
        if rules.copied(seen) == "store":
            yield f"reads {value} at O", move.become(todo="reserve late" if rules.shortcut == _LATE else "store", value=value)
        else:
            yield "reads nothing to copy at O", move.become(todo="give back")
    elif actor.todo == "reserve late":
        won = move.get("N", lease=True).won
        if won:
            move.hold("N")
        yield "reserves at N", move.become(todo="store") if won else move.rest()
    elif actor.todo == "store":
        if by_add and rules.shortcut != _LATE:
            if world.new is None:
                move.put("N", Item(actor.value))
        else:
            move.fill(actor.value)
        yield f"stores {actor.value} at N", move.rest()
    else:
        move.drop()
        yield "gives its place back", move.rest()


_LATE: Final = "copy reads before it reserves"


# -- readers


def _reader(world: World, index: int, actor: Actor, rules: Rules, size: Size) -> _Moves:
    through = actor.kind == "through"
    if not actor.todo and actor.left:
        for epoch in range(world.document + 1):
            began = actor._replace(
                left=actor.left - 1, todo="ask", epoch=epoch, floor=world.done, fresh=max(world.done, world.marked)
            )
            yield from _asking(world, index, began, rules, size)
        return
    if actor.todo == "ask":
        yield from _asking(world, index, actor, rules, size)
        return
    if not actor.todo:
        return
    move = Move(world, index, rules)
    match actor.todo:
        case "old":
            seen = move.get("O")
            value = move.value_of("O") if seen.value else 0
            if seen.won:
                move.mark("O")
            if not move.agrees("O"):
                yield "learns at O that it is late", move.become(todo="load" if through else "give back, ask")
            elif rules.copied(seen) == "store" and actor.held:
                yield f"reads {value} at O", move.become(todo="fill", value=value)
            else:
                if seen.value and not through:
                    move.returned(value, seen.stale)
                next_ = "load" if through else "give back"
                yield "finds nothing to copy at O", move.become(todo=next_) if actor.held else move.rest()
        case "fill":
            move.fill(actor.value)
            move.returned(actor.value)
            yield f"fills {actor.value}", move.rest()
        case "load":
            yield f"loads {world.row}", move.become(todo="store", value=world.row)
        case "store":
            if rules.shortcut == "plain-add fills":
                item = world.old if actor.held == "O" else world.new
                if item is None or item.value is None:
                    move.put(actor.held, Item(actor.value))
            else:
                move.fill(actor.value)
            if not actor.command:  # a refresh has returned already
                move.returned(actor.value)
            yield f"stores {actor.value} at {actor.held}", move.rest()
        case "take over":
            if actor.fits:
                move.mark(actor.held)
            yield "takes over", move.become(todo="ask", held="", fits=False)
        case _:
            if actor.held:
                move.drop()
            if actor.todo == "give back":
                yield "gives its place back", move.rest()
            else:
                yield "gives its place back", move.become(todo="ask", held="", fits=False)


def _asking(world: World, index: int, actor: Actor, rules: Rules, size: Size) -> _Moves:
    through = actor.kind == "through"
    for early in (False, True) if through and size.early else (False,):
        move = Move(world, index, rules)
        move.actors[index] = actor
        yield from _asks(move, rules.steps(actor.epoch, "read"), through, early)


def _asks(move: Move, steps: tuple[Step, ...], through: bool, early: bool) -> _Moves:
    side = steps[0].side
    plain_add = move.rules.shortcut == "plain-add fills"
    seen = move.get(side, lease=(through or steps[0].action == "lease") and not plain_add, early=early)
    if early and not seen.won:
        return
    value = move.value_of(side) if seen.value else 0
    if not move.agrees(side):
        if seen.won:
            move.hold(side)
            yield f"learns at {side} that it is late", move.become(todo="give back, ask")
        else:
            yield f"learns at {side} that it is late", move
    elif seen.value:
        move.returned(value, seen.stale)
        if through and seen.won:
            move.hold(side)
            yield f"reads {value} at {side}, and is to refresh it", move.become(todo="load", command="refresh")
        else:
            if seen.won:
                move.mark(side)
            yield f"reads {value} at {side}", move.rest()
    elif seen.won or (plain_add and through):
        move.hold(side)
        yield f"takes the lease at {side}", move.become(todo="old" if len(steps) == 2 else "load")
    elif seen.taken and len(steps) == 2 and not through:
        yield f"finds a lease at {side}", move.become(todo="old")
    elif seen.taken and through:
        yield "leaves it to another", Move(move.world, move.index, move.rules).rest()
        move.hold(side)
        yield "has waited long enough", move.become(todo="take over")
    else:
        yield f"misses at {side}", move.rest()


# -- the writer


def _writer(world: World, index: int, actor: Actor, rules: Rules, size: Size) -> _Moves:
    if not actor.todo:
        if actor.left:
            for epoch in range(world.document + 1):
                for command in size.commands:
                    move = Move(world, index, rules).become(left=actor.left - 1, epoch=epoch, command=command)
                    if command == "cas":
                        yield "begins with gets", move.become(todo="gets")
                        continue
                    move.fields["row"] = world.row + 1
                    todo = "step" if command in _BLIND else "confirm"
                    yield f"commits {world.row + 1}, then {command}", move.become(todo=todo, value=world.row + 1)
        return
    move = Move(world, index, rules)
    kind = {"set": "set", "delete": "delete", "soft": "delete"}.get(actor.command, "change")
    steps = rules.steps(actor.epoch, kind)
    match actor.todo:
        case "gets":
            yield from _gets(move, actor, rules)
        case "confirm":
            side = next(step.side for step in steps if step.action == "change")
            yield f"confirms its epoch at {side}", move.become(todo="step" if move.agrees(side) else "confirm", at=0)
        case "step":
            yield from _writes(move, actor, steps)
        case "clear away":
            move.put(actor.debris, None)
            yield f"deletes what it wrote at {actor.debris}", _written(move.become(debris=""))
        case _:
            yield from _promotes(move, actor)


def _gets(move: Move, actor: Actor, rules: Rules) -> _Moves:
    """A read whose CAS number the next step needs; what O has was promoted by a read before, or is not found."""
    side = phases.reader(rules.order[actor.epoch])  # type: ignore[arg-type]
    seen = move.get(side)
    if seen.won:
        move.mark(side)
    if not move.agrees(side):
        yield "learns late with gets", move
    elif not seen.value:
        yield "gets nothing", move.rest()
    else:
        value = move.value_of(side)
        move.hold(side)
        move.fields["row"] = move.row + 1
        yield f"gets {value} and commits {move.row}", move.become(todo="confirm", value=move.row)


def _writes(move: Move, actor: Actor, steps: tuple[Step, ...]) -> _Moves:
    step = steps[actor.at]
    name, wrote = f"{step.action} {step.side}", False
    match step.action:
        case "promote":
            yield "begins to promote", move.become(todo="promote")
            return
        case "delete":
            tombstone = move.rules.shortcut == "copy by add, tombstones" and step.side == "N"
            if actor.command == "soft":
                move.mark(step.side)
            else:
                move.put(step.side, Item(None) if tombstone else None)
        case "set":
            move.put(step.side, Item(actor.value))
            wrote = True
        case "change":
            stored = _change(move, actor, step.side)
            found = stored if actor.command == "incr" else not stored
            if actor.command != "cas" and stored is not None and not found and move.keeps:
                raise Stale(f"{actor.command} found nothing, though nobody had deleted the value")
            if stored is None:
                yield f"drops a placeholder at {step.side}", move
                return
            wrote = stored
            if not stored and actor.command != "incr":
                move.become(command="delete", held="", fits=False)
                if move.agrees(step.side):
                    pass
                yield f"{actor.command} is refused at {step.side}, so delete", move.become(todo="step", at=0)
                return
    changed = any(done.action == "change" for done in steps[: actor.at])  # by rules that held: what is left to do follows from it
    if not move.agrees(step.side) and not changed:
        if wrote and move.rules.shortcut != "redone set leaves what it wrote":
            move.become(debris=step.side)
        if step.action == "change":  # the outcome is unknown, so whoever asked for it deletes
            move.become(command="delete")
        change = move.me.command not in _BLIND
        yield f"{name}, and learns that it is late", move.become(todo="confirm" if change else "step", at=0)
    elif actor.at + 1 < len(steps):
        yield name, move.become(at=actor.at + 1)
    else:
        yield name, _written(move)


def _change(move: Move, actor: Actor, side: str) -> bool | None:
    """An incr, add or cas at its node: whether it changed anything; None where it met a placeholder, which it removes first."""
    item = move.item(side)
    if actor.command == "cas":
        fits = actor.held == side and actor.fits and item is not None and item.value is not None
        return fits and move.fill(actor.value)
    if item is not None and item.value is None:
        move.put(side, None)
        return None
    if actor.command == "incr":
        if item is not None:
            assert item.value is not None
            move.put(side, item._replace(value=item.value + 1))
        return item is not None
    if item is None:
        move.put(side, Item(actor.value))
    return item is None


def _written(move: Move) -> Move:
    """A write has ended, and what it left behind elsewhere is deleted first."""
    me = move.me
    sides = {step.side for step in move.rules.steps(me.epoch, "delete")}
    if me.debris and me.debris not in sides:
        return move.become(todo="clear away")
    field = "marked" if me.command == "soft" else "done"
    move.fields[field] = max(getattr(move, field), me.value)
    return move.rest()


def _promotes(move: Move, actor: Actor) -> _Moves:
    """Copy the key to N, as a reader does, whoever else is about to."""
    match actor.todo:
        case "promote":
            seen = move.get("N", lease=True)
            if seen.won and not seen.value:
                move.hold("N") if actor.command != "cas" else move.drop()
            if not move.agrees("N"):
                yield "learns at N that it is late", move.become(todo="confirm")
            elif seen.value or actor.command == "cas":
                if seen.won:
                    move.mark("N")
                yield "finds it at N", move.become(todo="step", at=actor.at + 1)
            elif seen.won:
                yield "reserves at N", move.become(todo="promote old")
            else:
                move.put("N", None)
                yield "drops a placeholder at N", move
        case "promote old":
            seen = move.get("O")
            value = move.value_of("O") if seen.value else 0
            if seen.won:
                move.mark("O")
            if not move.agrees("O"):
                yield "learns at O that it is late", move.become(todo="confirm")
            elif move.rules.copied(seen) == "store":
                yield f"reads {value} at O", move.become(todo="promote fill", floor=value)
            else:
                move.drop()
                yield "finds nothing to promote", move.become(todo="step", at=actor.at + 1, held="", fits=False)
        case _:
            stored = move.fill(actor.floor)
            todo, at = ("step", actor.at + 1) if stored else ("promote", actor.at)
            yield f"promotes {actor.floor}", move.become(todo=todo, at=at, held="", fits=False, floor=0)


_BLIND: Final = ("set", "delete", "soft")  # what they do does not depend on what is there
_ACTS: Final = {"coordinator": _coordinator, "migrator": _migrator, "plain": _reader, "through": _reader, "writer": _writer}


def explore(size: Size, shortcut: Shortcut | None = None) -> int:
    """Make all moves there are; the number of worlds that were reached.

    :raises Stale: for the first world in which something is wrong, and the moves that lead to it
    """
    rules = Rules(size, shortcut)
    actors = [Actor("coordinator", 0), Actor("migrator", size.copies), Actor("writer", size.writes)]
    actors += [Actor(kind, size.reads) for kind in size.readers]
    first = World(0, 0, 0, Item(0), None, 0, 0, 0, True, True, False, size.evictions, size.restarts, tuple(actors))
    came: dict[World, tuple[World | None, str]] = {first: (None, "")}
    waiting = [first]
    while waiting:
        world = waiting.pop()
        try:
            for name, following in moves(world, rules, size):
                if following not in came:
                    came[following] = (world, name)
                    waiting.append(following)
            _check_end(world)
        except Stale as stale:
            raise Stale(str(stale), _path(came, world)) from None
    return len(came)


def _check_end(world: World) -> None:
    """Once all is over, O holds nothing that would be found there if the key came back."""
    over = world.swept and not any(actor.left or actor.todo or actor.adds for actor in world.actors)
    if over and world.old is not None and world.old.value is not None:
        raise Stale(f"O keeps {world.old.value} after the resize")


def _path(came: dict[World, tuple[World | None, str]], world: World) -> list[str]:
    names: list[str] = []
    at: World | None = world
    while at is not None:
        at, name = came[at]
        names.append(name)
    return names[::-1]
