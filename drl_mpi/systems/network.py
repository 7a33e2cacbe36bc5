"""The network that a config asks for, equal on every rank."""

from __future__ import annotations

from drl_mpi import nets
from drl_mpi.envs import EnvSpec
from drl_mpi.errors import UsageError
from drl_mpi.systems.system import System


def make_net(config: System, spec: EnvSpec) -> nets.Network:
    """Makes it.

    Raises:
        UsageError: for one that cannot take the environment's observations.
    """
    shape = spec.observation_shape
    try:
        net = nets.make(
            nets.default_net(shape) if config.net == "auto" else config.net,
            shape,
            spec.num_actions,
            head=config.head,
            core=None if config.core == "none" else config.core,
            seed=config.seed,
        )
    except ValueError as error:
        raise UsageError(f"--net {config.net}: {error}") from error
    net.precision = config.precision
    return net
