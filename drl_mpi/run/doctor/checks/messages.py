"""How fast messages are between ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drl_mpi.run.doctor.checks.words import count
from drl_mpi.run.doctor.facts import Finding, Link, Survey, fail, ok, warn

SLOW_US = 1000.0
"""Latency from which something is wrong: Ethernet takes some 30 us, a busy core milliseconds."""
NARROW_GB_PER_S = 0.1
"""Bandwidth below which something is wrong: Ethernet of 1 Gbit/s has a little more."""
ON_HOST = "are cores free? fewer ranks, or wait until the machine is quiet"
BETWEEN = (
    "choose the fast network: OMPI_MCA_btl_tcp_if_include=NAME for TCP (ip addr tells names), or "
    "OMPI_MCA_pml=ucx UCX_NET_DEVICES=NAME"
)


def latency(survey: Survey) -> list[Finding]:
    """Of small messages. Also where it is said that messages get lost."""
    if survey.link_error:
        remedy = "a firewall, or the wrong network: OMPI_MCA_btl_tcp_if_include=NAME (ip addr)"
        return [fail("latency", f"no messages {survey.link_error}", remedy)]
    return _measured(
        survey,
        "latency",
        worst=lambda links: max(links, key=lambda link: link.latency_us),
        value=lambda link: f"{link.latency_us:.1f} us",
        bad=lambda link: link.latency_us > SLOW_US,
    )


def bandwidth(survey: Survey) -> list[Finding]:
    """Of large messages."""
    return _measured(
        survey,
        "bandwidth",
        worst=lambda links: min(links, key=lambda link: link.gigabytes_per_s),
        value=lambda link: f"{link.gigabytes_per_s:.2g} GB/s",
        bad=lambda link: link.gigabytes_per_s < NARROW_GB_PER_S,
    )


def _measured(
    survey: Survey,
    what: str,
    worst: Callable[[Sequence[Link]], Link],
    value: Callable[[Link], str],
    bad: Callable[[Link], bool],
) -> list[Finding]:
    texts = []
    remedy = ""
    for between, place in ((False, "on a host"), (True, "between hosts")):
        links = [link for link in survey.links if link.between_hosts is between]
        if not links:
            continue
        link = worst(links)
        pairs = f"worst of {len(links)} pairs" if len(links) > 1 else "1 pair"
        text = f"{value(link)} {place} ({pairs})"
        if bad(link):
            remedy = remedy or (BETWEEN if between else ON_HOST)
            (a, b), (host_a, host_b) = link.ranks, link.hosts
            named = f"{a} ({host_a}) and {b} ({host_b})" if between else f"{a} and {b} of {host_a}"
            text += f", ranks {named}"
        texts.append(text)
    if not texts:
        return []
    if survey.unmeasured:
        texts.append(f"no time for {count(survey.unmeasured, 'pair')}")
    found = "; ".join(texts)
    return [warn(what, found, remedy) if remedy else ok(what, found)]
