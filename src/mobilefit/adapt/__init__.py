"""NetAdapt: layer-wise search for a latency (V3 paper, section 4.2)."""

from mobilefit.adapt.importance import (
    ChannelImportance,
    Gates,
    Importance,
    bn_scales,
    filter_norms,
    gates,
)
from mobilefit.adapt.judgement import Judgement, judge
from mobilefit.adapt.netadapt import LOG, AdaptSettings, Rule, adapt
from mobilefit.adapt.proposals import KINDS, Group, Kind, Proposal, groups, propose, removable
from mobilefit.adapt.steps import Adapted, Tools
from mobilefit.adapt.transfer import transfer
from mobilefit.adapt.tuning import LEAST_TUNE_STEPS, for_shrunk, gates_on, short_term, tools_for

__all__ = [
    "KINDS", "LEAST_TUNE_STEPS", "LOG", "AdaptSettings", "Adapted", "ChannelImportance", "Gates", "Group", "Importance", "Judgement", "Kind", "Proposal", "Rule",
    "Tools", "adapt", "bn_scales", "filter_norms", "for_shrunk", "gates", "gates_on", "groups", "judge", "propose", "removable", "short_term", "tools_for", "transfer",
]  # fmt: skip
