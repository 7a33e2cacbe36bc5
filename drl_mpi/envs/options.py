"""How environments are prepared: all that changes the problem, in one record for the run folder."""

from __future__ import annotations

from dataclasses import dataclass

from drl_mpi.envs.base import EnvError


@dataclass(frozen=True)
class EnvOptions:
    """Settings of `make`. The defaults are the classic Atari protocol: DQN, A3C and IMPALA papers.

    "Atari" marks what other environments do not have; there it is ignored, except that `sticky`
    and `full_action_space` are refused, as they would change what is measured. Rewards are never
    clipped here: actors clip, so that raw returns survive.
    """

    sticky: float = 0.0
    """Atari: probability, per frame, that the emulator repeats its previous action. 0.0 in the
    papers of 2015-2018 (no-op starts); 0.25 is the modern protocol (Machado et al. 2018)."""
    full_action_space: bool = False
    """Atari: all 18 actions instead of the game's minimal set (Machado et al. 2018 use all 18)."""
    life_loss: bool = True
    """Atari: a lost life ends the episode for learning (terminated) while the game goes on (Mnih et
    al. 2015, Methods; Espeholt et al. 2018, appendix). False in the modern protocol."""
    noop_max: int = 30
    """Atari: each game starts with a random number of no-ops below this, in frames; 0 for none
    (Mnih et al. 2015, Methods: up to 30). AtariVectorEnv draws from 0 .. noop_max - 1 and counts
    the FIRE of `fire_reset` as one of them."""
    fire_reset: bool = True
    """Atari: press FIRE once at the start of each game whose action set has it, as OpenAI
    Baselines' wrappers do. After a lost life the agent has to press it."""
    max_frames_per_episode: int = 108_000
    """Atari: time limit of a game in emulator frames, no-op start not counted: 30 minutes (Hessel
    et al. 2018, and ALE's registry). Reaching it truncates, it does not terminate. Other
    environments keep the limit that they were registered with, in steps."""
    action_repeat: int = 4
    """Atari: frames per step, with the maximum over the last two (Mnih et al. 2015, Methods)."""
    stack: int | None = None
    """Frames per observation; None: 4 for Atari (Mnih et al. 2015, Methods), 1 for others."""
    threads: int = 1
    """Atari: emulator threads of this rank. One rank per core wants 1; AtariVectorEnv's own default
    takes every core of the machine."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.sticky < 1.0:
            raise EnvError(
                f"sticky is {self.sticky}; allowed: a probability in [0, 1); use 0 or 0.25"
            )
        for name, low in (
            ("noop_max", 0),
            ("max_frames_per_episode", 1),
            ("action_repeat", 1),
            ("threads", 1),
        ):
            if getattr(self, name) < low:
                raise EnvError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        if self.stack is not None and not 1 <= self.stack <= 64:
            raise EnvError(
                f"stack is {self.stack}; allowed: 1 .. 64, or None for 4 on Atari and 1 elsewhere"
            )
