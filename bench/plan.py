"""What `bench run` is going to do, worked out before anything is trained or written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import Hardware, detect_hardware
from bench.errors import UserError, unknown_name
from bench.estimate import (
    Workload,
    check_workers,
    phantom_workload,
    workload_of,
)
from bench.override import with_overrides
from bench.spec import Profile, RunSpec, Suite
from bench.weights import WeightsFile

if TYPE_CHECKING:
    from bench.data.dataset import Dataset
    from bench.data.splits import Splits
    from bench.tuned import Tuned

NOT_YET = "-" * 10  # stands for the split hash while the phantom is not generated


@dataclass(frozen=True)
class Request:
    """`bench run` as asked for. None means: all of the suite's (or the profile's), or chosen by the
    hardware.
    """

    suite: str = "main"
    data: tuple[str | Path, ...] = ()  # folders, or URLs that fsspec reads
    profile: str | None = None
    methods: tuple[str, ...] | None = None
    backbones: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    executor: str = "ray"
    name: str | None = None
    runs_dir: Path = Path("runs")
    backbone_weights: str | None = None  # a file, or a name on the hub
    weights: tuple[str, ...] = ()  # METHOD=FILE or METHOD=NAME, published weights of the method itself
    splits: Path | None = None  # a splits.json, which names the data sets too
    ablations: tuple[str, ...] = ()  # of BoltzFormer instead of the suite's methods; `suite` then is the scale
    values: tuple[str, ...] | None = None  # of the one ablation
    address: str | None = None  # of a Ray cluster
    storage: str | None = None  # a URL through which machines exchange the suite's files
    tracking_uri: str | None = None  # of MLflow's store
    space: tuple[str, ...] | None = None  # of `bench tune`, as written; () is the profile's grid
    trials: int | None = None  # configurations of the space
    stopping: bool = True  # configurations that do badly are stopped early
    tuned: bool = False  # by the recipes that `bench tune` found
    tuned_from: Path | None = None  # its folder
    changes: tuple[str, ...] = ()  # of the profile's fields, FIELD=VALUE

    @property
    def command(self) -> str:
        """The command line that asks for this."""
        words = ["bench", "run", "--suite", self.suite]
        if self.ablations:
            words = ["bench", "ablate", self.ablations[0] if len(self.ablations) == 1 else "all"]
            words += ["--values", ",".join(self.values)] if self.values is not None else []
            words += ["--suite", self.suite] if self.suite != "main" else []
        if self.space is not None:
            words = ["bench", "tune", ",".join(self.methods or ()), "--suite", self.suite]
        for text in self.space or ():
            words += ["--space", text]
        words += [] if self.stopping else ["--no-stopping"]
        words += ["--tuned"] if self.tuned and self.tuned_from is None else []
        for folder in self.data:
            words += ["--data", str(folder)]
        for change in self.changes:
            words += ["--set", change]
        for weights in self.weights:
            words += ["--weights", weights]
        methods = self.methods if self.space is None else None
        seeds = self.seeds if self.space is None else None
        lists = {"--methods": methods, "--backbones": self.backbones, "--seeds": seeds}
        texts = {"--profile": self.profile, "--name": self.name, "--backbone-weights": self.backbone_weights}
        texts["--splits"] = str(self.splits) if self.splits is not None else None
        texts |= {option: ",".join(map(str, values)) for option, values in lists.items() if values is not None}
        texts |= {"--seed": str(self.seeds[0])} if self.space is not None and self.seeds else {}
        texts |= {"--trials": str(self.trials)} if self.trials is not None else {}
        texts |= {"--tuned-from": str(self.tuned_from)} if self.tuned_from is not None else {}
        texts |= {"--address": self.address, "--storage": self.storage, "--tracking-uri": self.tracking_uri}
        texts["--executor"] = self.executor if self.executor != "ray" else None
        texts["--runs-dir"] = str(self.runs_dir) if self.runs_dir != Path("runs") else None
        for option, text in texts.items():
            words += [option, text] if text is not None else []
        return shlex.join(words)


@dataclass(frozen=True)
class Choice:
    """A request with every name looked up; no data read yet."""

    suite: Suite
    profile: Profile
    reason: str  # why this profile
    hardware: Hardware
    methods: tuple[str, ...]
    backbones: tuple[str, ...]
    seeds: tuple[int, ...]
    folders: tuple[Path, ...]  # data set folders; () is a phantom
    phantom: str = "phantom"  # which, a name of bench.data.phantom.PHANTOMS


@dataclass(frozen=True)
class Plan:
    """A choice with its data: what will be run, and where. `splits` is None while the phantom is not
    generated.
    """

    choice: Choice
    folder: Path  # runs/<name>
    splits: Splits | None
    work: Workload
    specs: tuple[RunSpec, ...]  # in the tables' order
    ablations: dict[str, dict[str, str]]  # name -> value as shown -> row (RunSpec.row)
    weights: WeightsFile | None = None
    own_weights: dict[str, WeightsFile] = field(default_factory=dict)  # by method
    tuned: dict[tuple[str, str], Tuned] | None = None  # by method and backbone; None: the profile's recipe

    @property
    def split_hash(self) -> str:
        """The hash of the splits, dashes while there are none."""
        return NOT_YET if self.splits is None else self.splits.hash


def choose(request: Request, hardware: Hardware | None = None) -> Choice:
    """Looks all names up. UserError (did you mean) for an unknown one or data that are not there, and for workers that
    could not train a trial together.
    """
    from bench.data.splits import split_roots
    from bench.data.storage import datasets_at
    from bench.exchange import check_url
    from bench.methods import METHODS
    from experiments import SUITES, profiles
    from experiments.ablations import SUITE as ABLATIONS_OF_BOLTZFORMER

    if request.runs_dir.exists() and not request.runs_dir.is_dir():
        raise UserError(f"{request.runs_dir} is a file: name a folder with --runs-dir")
    if request.storage is not None:
        check_url(request.storage)
    if request.suite not in SUITES:
        raise unknown_name("suite", request.suite, SUITES)
    suite = SUITES[request.suite]
    if request.ablations:
        scale = "" if suite.profile is None else f"-{suite.name}"
        suite = ABLATIONS_OF_BOLTZFORMER.model_copy(update={"name": f"ablate{scale}", "profile": suite.profile})
    if request.space is not None:
        suite = suite.model_copy(update={"name": f"{suite.name}-tune", "title": "Search of hyper-parameters"})
    hardware = hardware or _hardware(request)
    if request.profile is not None:
        name, reason = request.profile, "asked for"
    elif suite.profile is not None:
        name, reason = suite.profile, f"fixed by suite {suite.name}"
    else:
        chosen, reason = profiles.choose(hardware)
        name = chosen.name
    if name not in profiles.PROFILES:
        raise unknown_name("profile", name, profiles.PROFILES)
    profile = with_overrides(profiles.PROFILES[name], request.changes)
    methods = _pick("method", request.methods, suite.methods, METHODS, f"suite {suite.name}")
    known = profiles.BACKBONE_LABELS
    backbones = _pick("backbone", request.backbones, profile.backbones, known, f"profile {name}")
    seeds = suite.seeds if request.seeds is None else tuple(dict.fromkeys(request.seeds))
    if request.executor != "local" and any(METHODS[method].uses_backbone for method in methods):
        check_workers(profile, hardware, request.storage)
    if request.splits is not None and request.data:
        raise UserError(f"--splits: {request.splits} names its data sets already: leave --data out")
    paths = request.data if request.splits is None else split_roots(request.splits)
    phantom = _phantom_name(request.data)
    generated = phantom is not None or not paths
    folders = () if generated else tuple(datasets_at(paths, request.runs_dir / "data"))
    return Choice(suite, profile, reason, hardware, methods, backbones, seeds, folders, phantom or "phantom")


def _hardware(request: Request) -> Hardware:
    """Of the Ray cluster asked for, else of this machine."""
    if request.address is None:
        return detect_hardware()
    if request.executor == "local":
        raise UserError("--address names a Ray cluster and --executor local uses none: leave one of them out")
    from bench.cluster import hardware_of

    return hardware_of(request.address)


def _phantom_name(data: Sequence[str | Path]) -> str | None:
    """The phantom that `--data` names, None where it names folders; a folder of that name comes first."""
    from bench.data.phantom import PHANTOMS

    names = [str(item) for item in data if str(item) in PHANTOMS and not Path(item).exists()]
    if names and len(data) > 1:
        raise UserError(
            f"--data {names[0]} is generated and stands alone: leave the other --data out, or write it into a folder "
            "first (`bench data phantom`)"
        )
    return names[0] if names else None


def _pick(
    kind: str, asked: Sequence[str] | None, default: Sequence[str], known: Iterable[str], where: str
) -> tuple[str, ...]:
    """The names asked for, in the default's order; a method outside the suite may be asked for, at the
    end.
    """
    if asked is None:
        return tuple(default)
    known = list(known)
    for name in asked:
        if name not in known:
            raise unknown_name(kind, name, known)
    if not asked:
        raise UserError(f"no {kind} is left: name at least one of {where}: {', '.join(default)}")
    return tuple(name for name in default if name in asked) + tuple(
        dict.fromkeys(name for name in asked if name not in default)
    )


def make_plan(
    choice: Choice,
    request: Request,
    datasets: Sequence[Dataset] | None,
    weights: WeightsFile | None = None,
    own_weights: dict[str, WeightsFile] | None = None,
) -> Plan:
    """Splits the data sets and lists the trials; `datasets` None is a phantom that is not generated yet."""
    from bench.data.splits import load_splits, make_splits
    from bench.methods import METHODS, make_spec
    from bench.search import configured, space_of
    from bench.tuned import read_tuned, tuned_specs

    splits = None
    if datasets is not None:
        splits = make_splits(datasets) if request.splits is None else load_splits(request.splits, datasets)
    for method in choice.methods:
        check = METHODS[method].check
        if check is not None and splits is not None:
            check(splits)
    if splits is None:
        work = phantom_workload(choice.profile.phantom, phantom_objects(choice.profile))
    else:
        work = workload_of(splits)
    split_hash = NOT_YET if splits is None else splits.hash
    own_weights = own_weights or {}
    specs = [
        make_spec(
            choice.suite,
            choice.profile,
            method,
            backbone,
            seed,
            split_hash,
            weights and weights.weights,
            own_weights[method].weights if method in own_weights else None,
        )
        for seed in choice.seeds  # first, so that what is stopped after a seed is a whole comparison
        for method in choice.methods
        for backbone in (choice.backbones if METHODS[method].uses_backbone else ("-",))
    ]
    parts = [data.name for data in datasets or () if not data.phantom]
    parts += [choice.phantom] if choice.phantom != "phantom" else []
    parts += [] if weights is None else [weights.path.stem]
    tuned = None
    if request.tuned:
        found_in = request.tuned_from or request.runs_dir / "-".join([f"{choice.suite.name}-tune", *parts])
        tuned = read_tuned(found_in)
        specs = tuned_specs(specs, tuned, found_in)
    name = request.name or "-".join([choice.suite.name, *(["tuned"] if request.tuned else []), *parts])
    if Path(name).name != name or name.startswith(".") or name in ("data", "mlartifacts", "mlflow.db"):
        raise UserError(f"--name {name!r} cannot be a folder of {request.runs_dir}: choose a plain name")
    specs, ablations = _with_variants(specs, request)
    if request.space is not None:
        specs = configured(specs, space_of(request.space, choice.profile), request.trials)
    folder = (request.runs_dir / name).resolve()
    return Plan(choice, folder, splits, work, tuple(specs), ablations, weights, own_weights, tuned)


def _with_variants(specs: Sequence[RunSpec], request: Request) -> tuple[list[RunSpec], dict[str, dict[str, str]]]:
    """The specs and those of every value of the ablations asked for, each once; and which value is which row."""
    from bench.ablate import variants
    from experiments.ablations import ABLATIONS

    all_specs: dict[str, RunSpec] = {}
    rows: dict[str, dict[str, str]] = {}
    for base in specs:
        all_specs[base.hash] = base
        for name in request.ablations:
            changed = variants(ABLATIONS[name], base, request.values)
            all_specs |= {spec.hash: spec for spec in changed.values()}
            rows.setdefault(name, {}).update({label: spec.row for label, spec in changed.items()})
    return list(all_specs.values()), rows


def phantom_folder(request: Request, choice: Choice) -> Path:
    """Where the phantom of a choice is kept."""
    from bench.data.phantom import PHANTOMS, folder_name

    name = folder_name(choice.profile.phantom, choice.profile.objects, PHANTOMS[choice.phantom])
    return request.runs_dir.resolve() / "data" / name


def phantom_objects(profile: Profile) -> dict[str, tuple[str, ...]]:
    """What a profile's phantom shows, by data set: all of Table 9 where the profile names none."""
    from experiments.paper import DATASETS, TABLE_9

    if profile.objects is not None:
        return profile.objects
    return {dataset: tuple(name for where, name in TABLE_9 if where == dataset) for dataset in DATASETS}
