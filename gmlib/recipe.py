"""The recipe of a run: every choice of Algorithm 1 in one frozen dataclass, and named presets as small diffs on it.

The defaults are the paper's, METHODS are the columns of its tables, BUDGETS say how much of the protocol is run.

"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from . import augment as augment_
from . import how as how_
from . import networks
from . import where as where_
from .checks import check_number, choose, plain
from .what import WHAT

INIT = ("noise", "real")
INTER_BATCHES = ("classes", "sampled")
CLASS_WEIGHTS = ("equal", "share")
PRECISIONS = ("float32", "tf32", "bf16", "tf32+bf16")


# name -> (what, how, where): the columns of Table 3, then the two further columns of Table 1.
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
    """What, how and where of a method in METHODS, or of one spelt "what,how,where" as in "multi,d1+100*d4,fixed".

    Footnote 5: on CIFAR-10 with 50 images per class D is d1 + 0.1 d2 for the methods in METHODS that take d1 + d2.
    """
    if isinstance(method, str) and method.count(",") >= 2 and method not in METHODS:
        return dict(zip(("what", "how", "where"), (part.strip() for part in method.split(",", 2)), strict=True))
    chosen = choose(METHODS, "method", method, 'a spelling "what,how,where" such as multi,d1+100*d4,fixed')
    if (dataset, ipc, chosen["how"]) == ("CIFAR10", 50, "d1 + d2"):
        return {**chosen, "how": "d1 + 0.1*d2"}
    return chosen


@dataclass(frozen=True)
class Recipe:
    """All choices of one condensation run. Checked when made: a ValueError says in a sentence what to change."""

    dataset: str = "digits"
    ipc: int = 1  # images per class in S

    what: str = "multi"  # gradients to match: intra, inter, interleaved, multi (Section 3.1)
    how: str = "d1 + d2"  # distance: a positive sum over d1..d4 (Section 3.2)
    where: str = (
        "adaptive"  # steps of theta: fixed, adaptive, overfit, overfit-gap (Section 3.3), or "steps:50,40,30"
    )
    lam: float | None = None  # weight of the inter-class term; None: the number of classes
    inter_batches: str = "classes"  # the inter-class gradient: Eq. 5's from the "classes", or "sampled" mixed batches
    class_weights: str = "equal"  # in Eq. 5: "equal", 1/C as in Algorithm 1, or each class's "share" of T
    gap: float = 0.5  # nats, threshold of "overfit-gap"; the paper names none

    network: str = "convnet"
    width: int = 128
    depth: int = 3

    outer_loops: int = 1000  # K, freshly drawn networks
    inner_loops: int | None = None  # T, updates of S per network; None: the paper's, by ipc
    zeta_theta: int | None = None  # steps of theta between updates where "fixed"; None: the paper's, by ipc
    zeta_S: int = 1  # updates of S at each theta (Eq. 10)
    batch_real: int = 256  # real images per class and update, without replacement; at most the class
    batch_theta: int = 256  # condensed images per gradient step of theta

    lr_images: float = 0.1
    momentum_images: float = 0.5
    lr_network: float = 0.01
    momentum_network: float = 0.5

    init: str = "noise"  # S at k = 0: N(0, 1) in normalised pixels ("noise") or random real images ("real")
    # Of both sides while matching: "dsa", differentiable Siamese augmentation (the paper's [29]) by its strategy for the data
    # set, or one of your own, "dsa:crop+scale". Networks are trained on S as `Protocol.augment` says, whatever this is.
    augment: str = "none"
    precision: str = (
        "float32"  # "tf32": products on CUDA in TF32; "bf16": the pass over real images in bfloat16; or both, +
    )
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in {
            "what": WHAT, "inter_batches": INTER_BATCHES, "class_weights": CLASS_WEIGHTS, "init": INIT, "precision": PRECISIONS,
        }.items():  # fmt: skip
            choose(dict.fromkeys(known), name, getattr(self, name))
        object.__setattr__(self, "augment", augment_.canonical_name(self.augment, ("none",)))
        if self.augment != "none" and self.inter_batches == "sampled":
            raise ValueError(
                'augment varies batches of one class, not mixed ones: take inter_batches="classes", or no augment'
            )
        object.__setattr__(
            self, "how", how_.spell_distance(how_.parse_distance(self.how))
        )  # one spelling for one distance
        if self.where not in where_.WHERE:
            object.__setattr__(self, "where", "steps:" + ",".join(map(str, where_.parse_schedule(self.where))))
        networks.parse_name(self.network)

        def number(name: str, **bounds: Any) -> None:
            object.__setattr__(self, name, plain(getattr(self, name)))
            check_number(name, getattr(self, name), **bounds)

        for name in ("ipc", "width", "depth", "outer_loops", "zeta_S", "batch_real", "batch_theta"):
            number(name, least=1, whole=True)
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
        self.schedule()  # T and zeta must follow from what is given

    def schedule(self) -> tuple[int, int]:
        """(T, zeta_theta) of this run: what is given, else the baseline's by images per class (Section 4.4).

        Only where="fixed" needs zeta_theta; elsewhere it is 1 when unknown and not used. Raises ValueError where the paper
        has no value for this ipc and none is given.
        """
        T, zeta = where_.FIXED.get(self.ipc, (None, None))
        T = self.inner_loops or T
        zeta = self.zeta_theta or zeta or (1 if self.where != "fixed" else None)
        missing = [name for name, value in (("inner_loops", T), ("zeta_theta", zeta)) if value is None]
        if missing:
            known = ", ".join(map(str, where_.FIXED))
            raise ValueError(
                f"the paper has no schedule for ipc={self.ipc} (only for {known}): "
                f"take one of these, or give {' and '.join(missing)}"
            )
        return T, zeta

    @property
    def method(self) -> str:
        """The name in METHODS of this (what, how, where), else one spelt from them: "multi,d1+100*d4,fixed".

        A source network other than the ConvNet stands behind it: "MD@lenet" (Table 4).
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
        """The recipe of a method (see `preset`) under a budget in BUDGETS; any field can be overridden by keyword."""
        preset(method, dataset, ipc)  # an unknown method is said before anything else
        for name in overrides:
            choose({f.name: None for f in fields(cls)}, "recipe field", name)
        diff = choose(BUDGETS, "budget", budget).diff(ipc)
        named = {"dataset": dataset, "ipc": ipc, "seed": seed, **preset(method, dataset, ipc)}
        if overrides.get("network") == "mlp":
            named["lr_images"] = 0.01  # the released scripts' rate for this source network
        return cls(**{**diff, **named, **overrides})

    def as_dict(self) -> dict[str, Any]:
        """Every field in plain JSON types; `Recipe(**recipe.as_dict()) == recipe`."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """How much of the paper's protocol is run: a diff on Recipe's defaults, and the size of phase 2."""

    recipe: dict[str, Any] = field(default_factory=dict)
    many: dict[str, Any] = field(default_factory=dict)  # further diff above one image per class
    sets: int = 2  # condensed sets per cell, with seeds 0, 1, ...
    networks: int = 50  # networks trained on each set
    epochs: int | None = None  # of phase 2; None: the protocol's
    coreset_epochs: int = 20  # of the network between whose features a coreset is chosen

    def diff(self, ipc: int) -> dict[str, Any]:
        """The Recipe fields this budget changes at `ipc` images per class."""
        return {**self.recipe, **(self.many if isinstance(plain(ipc), int) and ipc > 1 else {})}


BUDGETS: dict[str, Budget] = {
    # Seconds per set on two CPU cores, for 8x8 digits: the live report and the tests.
    "smoke": Budget(
        recipe={"width": 32, "depth": 2, "batch_real": 32, "outer_loops": 50},
        # Many images begin as real ones: from noise they would take hundreds of updates to get as good.
        many={"outer_loops": 6, "inner_loops": 4, "zeta_theta": 5, "init": "real"},
        sets=3,
        networks=3,
        epochs=100,
    ),
    # For a machine without a GPU: fewer and smaller real batches than the paper's, fewer networks. About ten minutes for a set
    # of MNIST with one image per class on two CPU cores.
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
    """The numbers of outer iterations, 0 to K, after which the pages look at S: closer at first, when it changes most."""
    return sorted({0, K} | {round(K / n) for n in (60, 30, 12, 6, 3, 1.5)})
