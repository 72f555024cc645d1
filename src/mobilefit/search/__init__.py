"""Block-wise, platform-aware search for seed networks (MnasNet; V3 paper, section 4.1)."""

from mobilefit.search.evaluate import Evaluator, Known, Outcome, Trial
from mobilefit.search.log import TrialLog, best_by_network, pareto, shortlist
from mobilefit.search.proxy import Proxy, ProxyTask
from mobilefit.search.reward import FORMS, Reward
from mobilefit.search.search import Searched, SearchSettings, load_evaluator, search
from mobilefit.search.space import BlockChoices, Decision, Space
from mobilefit.search.spaces import SPACES, space
from mobilefit.search.strategies import STRATEGIES, strategy
from mobilefit.search.strategy import Strategy, Tokens
from mobilefit.search.supernet import SharedWeights, Supernet, SupernetTask
from mobilefit.search.tabular import Tabular

__all__ = [
    "FORMS", "SPACES", "STRATEGIES", "BlockChoices", "Decision", "Evaluator", "Known", "Outcome",
    "Proxy", "ProxyTask", "Reward", "SearchSettings", "Searched", "SharedWeights", "Space",
    "Strategy", "Supernet", "SupernetTask", "Tabular", "Tokens", "Trial", "TrialLog",
    "best_by_network", "load_evaluator", "pareto", "search", "shortlist", "space", "strategy",
]  # fmt: skip
