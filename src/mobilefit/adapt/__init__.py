"""Shrinking to a latency: NetAdapt, layer by layer (V3 paper, section 4.2), and a knapsack of all widths and blocks."""

from mobilefit.adapt.importance import (
    ChannelImportance,
    Gates,
    Importance,
    bn_scales,
    filter_norms,
    gates,
)
from mobilefit.adapt.judgement import Judgement, judge
from mobilefit.adapt.knapsack import (
    KNAPSACK_LOG,
    ROUND_CUT,
    KnapsackSettings,
    cheapest,
    most_judged,
    shrink_by_knapsack,
)
from mobilefit.adapt.netadapt import LOG, AdaptSettings, Rule, adapt
from mobilefit.adapt.proposals import KINDS, Group, Kind, Proposal, groups, propose, removable
from mobilefit.adapt.steps import Adapted, Tools
from mobilefit.adapt.transfer import transfer
from mobilefit.adapt.tuning import LEAST_TUNE_STEPS, for_shrunk, gates_on, short_term, tools_for

__all__ = [
    "KINDS", "KNAPSACK_LOG", "LEAST_TUNE_STEPS", "LOG", "ROUND_CUT", "AdaptSettings", "Adapted", "ChannelImportance", "Gates", "Group", "Importance", "Judgement",
    "Kind", "KnapsackSettings", "Proposal", "Rule", "Tools", "adapt", "bn_scales", "cheapest", "filter_norms", "for_shrunk", "gates", "gates_on",
    "groups", "judge", "most_judged", "propose", "removable", "short_term", "shrink_by_knapsack", "tools_for", "transfer",
]  # fmt: skip
