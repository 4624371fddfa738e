"""What the actors of a run did, from the counters they send with their rows: stage times, tokens, reuse."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ray_job.engine.stats import LIMITS
from ray_job.output.parts import Receipt


@dataclass
class Activity:
    """Updated by each receipt; an actor's counters are those of its latest block."""

    write_s: float = 0.0
    actors: dict[str, dict[str, float]] = field(default_factory=dict)
    first_rows_s: dict[str, float] = field(default_factory=dict)  # by actor: when its first rows were committed
    engine: str | None = None  # that the actors run
    engine_reason: str | None = None  # where it is not the one that is chosen if nothing speaks against it

    def add(self, receipt: Receipt, at_s: float) -> None:
        """Takes the counters that came with one part, `at_s` seconds after the run began."""
        self.write_s += receipt.write_s
        self.engine, self.engine_reason = receipt.engine or self.engine, receipt.engine_reason or self.engine_reason
        for name, done in receipt.actors.items():
            self.first_rows_s.setdefault(name, at_s)
            known = self.actors.get(name)
            if known is None or done["prepare_s"] >= known["prepare_s"]:  # it only grows
                self.actors[name] = done

    def totals(self) -> dict[str, float]:
        """Sums over the actors; seconds are of work, more than the elapsed time where work ran in parallel."""
        counts: Counter[str] = Counter()
        for done in self.actors.values():
            counts.update(done)
        sums = {name: round(value, 3) for name, value in counts.items()}
        least = {name: min((done.get(name, 0) for done in self.actors.values()), default=0) for name in LIMITS}
        times_s = self.first_rows_s.values()
        ramp = {
            "first_rows_s": round(min(times_s, default=0.0), 3),
            "last_actor_s": round(max(times_s, default=0.0), 3),
        }
        return {"actors": len(self.actors), **sums, **least, "write_s": self.write_s, **ramp}

    def lines(self) -> list[tuple[str, str]]:
        """The totals for people: where the time went, and what was reused."""
        done = self.totals()
        if not self.actors:
            return []
        ramp = f"after {done['first_rows_s']:.1f} s"
        if len(self.actors) > 1:
            ramp += f"; from all {len(self.actors)} actors after {done['last_actor_s']:.1f} s"
        stages = [(name, done.get(f"{name}_s", 0.0)) for name in ("prepare", "vision", "prefill", "decode", "write")]
        lines = [
            ("first rows", ramp),
            ("time by stage", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages)),
        ]
        lines.append(
            ("engine idle", f"{done['idle_s']:.1f} s waiting for rows, after {done['load_s']:.1f} s of loading")
        )
        if done.get("waiting_slots"):
            lines.append(
                ("slots in use", f"{done['waiting_slots_used'] / done['waiting_slots']:.1%} while rows waited")
            )
        reused = [
            (done.get("duplicate_rows", 0), "duplicate rows"),
            (done.get("pictures_wanted", 0) - done.get("pictures_encoded", 0), "pictures"),
            (done.get("prefix_tokens_reused", 0), "prompt tokens"),
        ]
        if any(count > 0 for count, _ in reused):
            lines.append(("reused", ", ".join(f"{count:.0f} {name}" for count, name in reused if count > 0)))
        return lines
