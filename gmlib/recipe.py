"""The recipe of a run: one frozen dataclass with every choice, and presets as small changes of its defaults.

The defaults are the paper's. ``METHODS`` holds the columns of the paper's tables. ``BUDGETS`` says how much of
its protocol is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from . import networks
from .augment import canonical_name
from .checks import check_number, choose, plain
from .how import parse_distance, spell_distance
from .what import WHAT
from .where import FIXED, WHERE, baseline, parse_schedule

INIT = ("noise", "real")
INTER_BATCHES = ("classes", "sampled")
CLASS_WEIGHTS = ("equal", "share")
MOST_UPDATES = 10_000  # of S at each theta: their real batches are chosen at once
PRECISIONS = ("float32", "tf32", "bf16", "tf32+bf16")  # "auto" chooses between float32 and bf16

# The columns of Table 3, then the two further columns of Table 1.
METHODS: dict[str, dict[str, str]] = {
    "DC": {"what": "intra", "how": "d1", "where": "fixed"},
    "M": {"what": "multi", "how": "d1", "where": "fixed"},
    "MD": {"what": "multi", "how": "d1 + d2", "where": "fixed"},
    "MDO": {"what": "multi", "how": "d1 + d2", "where": "overfit"},
    "MDA": {"what": "multi", "how": "d1 + d2", "where": "adaptive"},
    "Inter": {"what": "inter", "how": "d1", "where": "fixed"},
    "Interleaved": {"what": "interleaved", "how": "d1", "where": "fixed"},
}


def preset(method: str, dataset: str, ipc: int) -> dict[str, str]:
    """The choices of what, how and where that make up a method.

    Parameters
    ----------
    method : str
        A name in ``METHODS``, or the three choices with commas, such as "multi,d1+100*d4,fixed".
    dataset : str
    ipc : int
        Images per class. For CIFAR10 with 50, a named method takes d1 + 0.1*d2 in place of d1 + d2.

    Returns
    -------
    dict
        With the keys what, how and where.

    Raises
    ------
    ValueError
        If the method is unknown.

    Source
    ------
    Tables 1 and 3; footnote 5.
    """
    if isinstance(method, str) and method.count(",") >= 2 and method not in METHODS:
        choices = (part.strip() for part in method.split(",", 2))
        return dict(zip(("what", "how", "where"), choices, strict=True))
    chosen = choose(METHODS, "method", method, 'a spelling "what,how,where" such as multi,d1+100*d4,fixed')
    if isinstance(dataset, str) and (dataset, plain(ipc), chosen["how"]) == ("CIFAR10", 50, "d1 + d2"):
        return {**chosen, "how": "d1 + 0.1*d2"}
    return chosen


@dataclass(frozen=True)
class Recipe:
    """All choices of one condensation run.

    Every count is a whole number of at least 1.

    Attributes
    ----------
    dataset : str
        The data set's name, ``Data.name``.
    ipc : int
        Images per class in S.
    what : str
        The gradients to match: "intra", "inter", "interleaved" or "multi" (Section 3.1, Eq. 4 to 6).
    how : str
        The distance of gradients: a sum of d1, d2, d3 and d4 with positive weights, such as "d1 + 0.1*d2" (Section
        3.2, Eq. 8 and 9; Table 2).
    where : str
        The steps of theta between updates of S: "fixed", "adaptive" (Eq. 12), "overfit", "overfit-gap", or a schedule
        such as "steps:50,40,30" (Section 3.3).
    lam : float or None
        lambda, the weight of the inter-class term, at least 0 (Eq. 6). None takes the number of classes (Section
        4.2).
    inter_batches : str
        The inter-class gradient. "classes" takes it from the class gradients (Eq. 5). "sampled" takes mixed
        mini-batches, as the released scripts do.
    class_weights : str
        The weights of the classes in Eq. 5: "equal", 1/C as in Algorithm 1, or "share", each class's share of T.
    gap : float
        The threshold of "overfit-gap" in nats, at least 0 (Section 3.3). The paper gives none.
    network : str
        The source network: a name in ``NETWORKS`` (Table 4), such as "convnet" or "convnet:norm=batch".
    width, depth : int
        Channels and blocks of the ConvNet. Networks with a fixed architecture ignore them.
    outer_loops : int
        K, the number of networks drawn (line 2 of Algorithm 1).
    inner_loops : int or None
        T, the inner iterations for each network (line 4). None takes the baseline's value for this ipc (Section 4.4).
    zeta_theta : int or None
        zeta_theta, the steps of theta if ``where`` is "fixed" (Eq. 11). None takes the baseline's value for this ipc
        (Section 4.4).
    zeta_S : int
        zeta_S, the updates of S at each theta (Eq. 10).
    batch_real : int
        Real images of each class for one update of S, drawn without replacement. A smaller class gives all its
        images.
    batch_theta : int
        Condensed images in one gradient step of theta.
    lr_images : float
        eta_S, the learning rate of S (Eq. 3), positive.
    lr_network : float
        eta_theta, the learning rate of theta (line 12), positive.
    momentum_images : float
        Momentum of S, at least 0 and less than 1. The default is that of the released scripts; Algorithm 1 has none.
    momentum_network : float
        Momentum of theta, with the same limits and the same source.
    init : str
        S_0: "noise" from N(0, 1) in normalised pixels (line 1), or "real" for random real images.
    augment : str
        Augmentation of both sides while matching: "none", "dsa" for differentiable Siamese augmentation with the
        strategy published for the data set, or a strategy such as "dsa:crop+scale" (reference [29] of the paper). It
        has no effect on `gmlib.evaluation.evaluate`.
    precision : str
        "float32"; "tf32" for products in TF32 on CUDA; "bf16" for the pass over real images in bfloat16;
        "tf32+bf16"; or "auto", which takes bf16 where the machine is faster with it, else float32. A set keeps the
        precision that was chosen.
    seed : int
        Seed of all random numbers of the run, at least 0.

    Raises
    ------
    ValueError
        On construction, if a value does not fit. The message says what to change.
    """

    dataset: str = "digits"
    ipc: int = 1

    what: str = "multi"
    how: str = "d1 + d2"
    where: str = "adaptive"
    lam: float | None = None
    inter_batches: str = "classes"
    class_weights: str = "equal"
    gap: float = 0.5

    network: str = "convnet"
    width: int = 128
    depth: int = 3

    outer_loops: int = 1000
    inner_loops: int | None = None
    zeta_theta: int | None = None
    zeta_S: int = 1
    batch_real: int = 256
    batch_theta: int = 256

    lr_images: float = 0.1
    momentum_images: float = 0.5
    lr_network: float = 0.01
    momentum_network: float = 0.5

    init: str = "noise"
    augment: str = "none"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()

    def _check_names(self) -> None:
        """Check the fields that are words, and give each its canonical spelling."""
        choose(WHAT, "what", self.what)
        for name, known in {
            "inter_batches": INTER_BATCHES,
            "class_weights": CLASS_WEIGHTS,
            "init": INIT,
            "precision": (*PRECISIONS, "auto"),
        }.items():
            choose(dict.fromkeys(known), name, getattr(self, name))
        networks.parse_name(self.network)
        self._set("augment", canonical_name(self.augment, ("none",)))
        if self.augment != "none" and self.inter_batches == "sampled":
            raise ValueError(
                'augment varies batches of one class, not mixed ones: take inter_batches="classes", or no augment'
            )
        self._set("how", spell_distance(parse_distance(self.how)))
        if not isinstance(self.dataset, str) or not self.dataset:
            raise ValueError(f"dataset={self.dataset!r} does not fit: give the name of a data set")
        if not isinstance(self.where, str) or self.where not in WHERE:
            self._set("where", "steps:" + ",".join(map(str, parse_schedule(self.where))))

    def _check_numbers(self) -> None:
        """Check the fields that are numbers, and turn numpy's numbers into Python's."""

        def number(name: str, **bounds: Any) -> None:
            self._set(name, check_number(name, getattr(self, name), **bounds))

        for name in ("ipc", "width", "depth", "outer_loops", "batch_real", "batch_theta"):
            number(name, least=1, whole=True)
        number("zeta_S", least=1, below=MOST_UPDATES + 1, whole=True)
        for name in ("inner_loops", "zeta_theta"):
            if getattr(self, name) is not None:
                number(name, least=1, whole=True, otherwise="None for the paper's")
        number("seed", least=0, whole=True)
        for name in ("lr_images", "lr_network"):
            number(name, above=0)
        for name in ("momentum_images", "momentum_network"):
            number(name, least=0, below=1)
        number("gap", least=0)
        if self.lam is not None:
            number("lam", least=0, otherwise="None for the number of classes")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the way to set a field of a frozen dataclass on construction

    def schedule(self) -> tuple[int, int]:
        """T and zeta_theta of this run: the fields, or the baseline's values for this ipc if they are None.

        Returns
        -------
        T, zeta_theta : int

        Source
        ------
        Section 4.4. `gmlib.where.baseline` says what holds for an ipc that the paper does not give.
        """
        T, zeta = baseline(self.ipc)
        return self.inner_loops or T, self.zeta_theta or zeta

    def describe_schedule(self) -> dict[str, Any]:
        """T and zeta_theta, and where they come from: "recipe", "Section 4.4", or "between points of Section 4.4".

        If the recipe gives one of them, the source is "recipe and", followed by that of the other.
        """
        T, zeta = self.schedule()
        given = [value is not None for value in (self.inner_loops, self.zeta_theta)]
        source = "Section 4.4" if self.ipc in FIXED else "between points of Section 4.4"
        source = "recipe" if all(given) else f"recipe and {source}" if any(given) else source
        return {"T": T, "zeta_theta": zeta, "source": source}

    @property
    def method(self) -> str:
        """The name in ``METHODS`` of these choices, or else their spelling such as "multi,d1+100*d4,fixed".

        A source network other than the ConvNet is added: ``"MD@lenet"`` (Table 4).
        """
        choice = {"what": self.what, "how": self.how, "where": self.where}
        named = [name for name in METHODS if preset(name, self.dataset, self.ipc) == choice]
        spelt = named[0] if named else f"{self.what},{self.how},{self.where}".replace(" ", "")
        return spelt if self.network == "convnet" else f"{spelt}@{self.network}"

    @classmethod
    def for_method(
        cls,
        method: str,
        dataset: str = "digits",
        ipc: int = 1,
        budget: str = "paper",
        seed: int = 0,
        **overrides: Any,
    ) -> Recipe:
        """The recipe of a method.

        Parameters
        ----------
        method : str
            See `preset`.
        dataset : str
        ipc : int
            Images per class.
        budget : str
            A name in ``BUDGETS``.
        seed : int
        **overrides
            Any field of the recipe.

        Returns
        -------
        Recipe

        Raises
        ------
        ValueError
            If a name is unknown or a value does not fit.
        """
        named = {"dataset": dataset, "ipc": ipc, "seed": seed, **preset(method, dataset, ipc)}
        for name in overrides:
            choose({f.name: None for f in fields(cls)}, "recipe field", name)
        diff = choose(BUDGETS, "budget", budget).diff(ipc)
        network = overrides.get("network")
        if isinstance(network, str) and network == "mlp":
            named["lr_images"] = 0.01  # the released scripts' rate for this source network
        return cls(**{**diff, **named, **overrides})

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types, such that ``Recipe(**recipe.as_dict()) == recipe``."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """How much of the paper's protocol is run: changes of the recipe's defaults, and the size of phase 2.

    Attributes
    ----------
    recipe : dict
        The recipe fields that change.
    many : dict
        Further fields that change if there is more than one image per class.
    sets : int
        Condensed sets for each number of a table, with seeds 0, 1, ... (2 in the paper, Section 4.1).
    networks : int
        Networks trained on each set (50 in the paper, Section 4.1).
    epochs : int or None
        Epochs of phase 2. None takes the protocol's.
    coreset_epochs : int
        Epochs of the network that gives the features for choosing a coreset.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    many: dict[str, Any] = field(default_factory=dict)
    sets: int = 2
    networks: int = 50
    epochs: int | None = None
    coreset_epochs: int = 20

    def diff(self, ipc: int) -> dict[str, Any]:
        """The recipe fields that this budget changes at ``ipc`` images per class."""
        return {**self.recipe, **(self.many if isinstance(plain(ipc), int) and ipc > 1 else {})}


BUDGETS: dict[str, Budget] = {
    # For the live report and the tests: 8x8 digits, seconds per set on two CPU cores.
    "smoke": Budget(
        recipe={"width": 32, "depth": 2, "batch_real": 32, "outer_loops": 50},
        # Many images start from real ones. From noise they need hundreds of updates to become as good.
        many={"outer_loops": 6, "inner_loops": 4, "zeta_theta": 5, "init": "real"},
        sets=3,
        networks=3,
        epochs=100,
    ),
    # For a machine without a GPU: smaller real batches and fewer networks than the paper's. A set of MNIST with one
    # image per class takes about ten minutes on two CPU cores.
    "lite": Budget(
        recipe={"batch_real": 32, "outer_loops": 400},
        many={"outer_loops": 10, "init": "real"},
        sets=2,
        networks=5,
        coreset_epochs=2,
    ),
    "paper": Budget(),
}


def milestones(K: int) -> list[int]:
    """Numbers of outer iterations, 0 to K, after which the pages show S: more at first, when S changes most."""
    return sorted({0, K} | {round(K / n) for n in (60, 30, 12, 6, 3, 1.5)})
