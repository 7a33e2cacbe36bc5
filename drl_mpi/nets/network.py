"""A network: torso, optional recurrent core, head."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from drl_mpi.nets.heads import Output
from drl_mpi.nets.torsos import Torso

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Network(nn.Module):
    """What `make` returns; every network of the suite has this one interface.

    `precision` ("fp32" or "bf16") is the arithmetic of the torso; it may be set at
    any time. The core and the heads are always float32: a recurrent state sums up
    small changes, and see `heads.py`.
    """

    def __init__(self, torso: Torso, core: Core | None, head: nn.Module) -> None:
        super().__init__()
        self.torso = torso
        self.core = core
        self.head = head
        self._precision = "fp32"

    def forward(
        self, observation: Tensor, first: Tensor, state: Tensor | None = None
    ) -> tuple[Output, Tensor | None]:
        """Run T steps of B environments.

        observation: [T, B, *observation_shape], uint8 (read as x / 255) or float32.
        first: [T, B] bool, the step starts an episode: the recurrent state is zeroed
        before it.
        state: [2, B, 256] float32 as the last call returned it or from
        `initial_state` (None means zeros); ignored without a core.
        Returns the output with leading dimensions [T, B], and the state after the
        last step (None without a core).
        """
        T, B = observation.shape[:2]
        x = self.torso(observation.flatten(0, 1), DTYPES[self._precision])  # [T * B, F]
        if self.core is not None:
            x, state = self.core(x.float().view(T, B, -1), first, state)
        else:
            x, state = x.view(T, B, -1), None
        return cast(Output, self.head(x)), state

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one environment's recurrent state: () without a core, else (2, 256)."""
        return () if self.core is None else (2, self.core.width)

    def initial_state(self, batch: int) -> Tensor | None:
        """Zeros [2, batch, 256] float32, or None without a core."""
        return None if self.core is None else self.core.initial_state(batch)

    @property
    def precision(self) -> str:
        return self._precision

    @precision.setter
    def precision(self, value: str) -> None:
        if value not in DTYPES:
            raise ValueError(f"precision is {value!r}, allowed: fp32, bf16; choose one of them")
        self._precision = value


class Core(nn.Module):
    """An LSTM whose state restarts with each episode (Hochreiter & Schmidhuber 1997).

    The state of a batch is one tensor [2, B, width]: hidden, then cell.
    """

    def __init__(self, inputs: int, width: int = 256) -> None:
        super().__init__()
        self.width = width
        # by way of meta: nn.LSTM's own initialisation would draw from torch's global generator
        self.lstm = nn.LSTM(inputs, width, device="meta").to_empty(device="cpu")

    def initialise(self, generator: torch.Generator) -> None:
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight"):
                for gate in parameter.chunk(4):
                    nn.init.orthogonal_(gate, 1.0, generator)
            else:
                nn.init.zeros_(parameter)

    def initial_state(self, batch: int) -> Tensor:
        device = next(self.lstm.parameters()).device
        return torch.zeros(2, batch, self.width, device=device)

    def forward(self, x: Tensor, first: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: [T, B, inputs], first: [T, B] bool, state: [2, B, width] -> [T, B, width], state.

        The unroll is cut before each step in which some episode starts: the pieces are
        few, and torch's LSTM runs a piece in half the time of a loop over its steps.
        """
        if state is None:
            state = self.initial_state(x.shape[1])
        starts = first.any(1).tolist()
        cuts = [0, *(t for t in range(1, len(starts)) if starts[t]), len(starts)]
        outputs = []
        for begin, end in itertools.pairwise(cuts):
            if starts[begin]:
                state = torch.where(first[begin].unsqueeze(-1), 0.0, state)
            hidden, cell = state.unsqueeze(1).unbind(0)  # [layers = 1, B, width] each
            output, (hidden, cell) = self.lstm(x[begin:end], (hidden, cell))
            state = torch.cat((hidden, cell))
            outputs.append(output)
        return torch.cat(outputs), state
