"""The command line. A command imports what it needs when it is called: `bench --help` is quick."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import options
from bench.ablate_commands import ablate
from bench.archive_command import archive
from bench.data.commands import data_app
from bench.errors import UserError, full_disk, printable
from bench.external_commands import evaluate, import_results
from bench.options import RunsDir
from bench.predict_command import predict
from bench.profile_command import profile
from bench.terminal import progress_bar, terminal_console, text_table
from bench.tune_command import tune
from bench.verify_command import verify

if TYPE_CHECKING:
    from bench.spec import Profile

HELP = """Train and compare text-prompted segmentation decoders for small objects on identical splits.

\b
First steps:
  bench run --suite smoke      the whole way at toy size, in under 3 minutes
  bench run --suite main       the comparison; the profile is chosen from the hardware
  bench tune all               learning rate and weight decay of each decoder, by validation
  bench ablate temperature     one part of BoltzFormer changed, beside the paper's numbers
  bench report main            the tables and figures again
  bench data check DIR         whether data of your own are usable, and what is to be mended
  bench predict --help         a trained model on an image of your own
  bench evaluate --help        scores of the masks of another tool
  bench profile --quick        what the sampled attention saves here, in a minute and a half
"""
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")


class Listing(StrEnum):
    """What `bench list` lists."""

    suites = "suites"
    methods = "methods"
    profiles = "profiles"
    runs = "runs"


# a file or folder that the user named and that is not what it should be
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


@app.command()
def run(
    suite: Annotated[str, typer.Option(help="What to run; see `bench list suites`.")] = "main",
    data: options.Data = None,
    profile: options.Profile = None,
    changes: options.Set = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="What to run instead of the suite's methods, e.g. boltzformer,sam; any of `bench list methods`.",
            metavar="A,B",
        ),
    ] = None,
    backbones: options.Backbones = None,
    seeds: options.Seeds = None,
    executor: options.ExecutorChoice = options.Executor.ray,
    address: options.Address = None,
    storage: options.Storage = None,
    tracking_uri: options.TrackingUri = None,
    name: options.Name = None,
    backbone_weights: options.BackboneWeights = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="A method's own published weights, a file or a name on the Hugging Face hub; may be repeated. "
            "biomedparse is run with them only: without, its row reads '-'.",
            metavar="METHOD=FILE|NAME",
        ),
    ] = None,
    splits: options.Splits = None,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="By the recipes that `bench tune` has found for these methods and data.")
    ] = False,
    tuned_from: Annotated[
        Path | None, typer.Option(help="The same, from this folder of `bench tune`.", metavar="DIR")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    dry_run: options.DryRun = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="As --dry-run, with hours and memory from a few real training steps of each method."
        ),
    ] = False,
) -> None:
    """Run the trials of a suite that are missing, then print the Dice table and write the report.

    \b
    Stop it at any time: the same command goes on where it stopped. Exit codes: 0 all well, 1 a trial failed,
    2 bad input, 130 stopped.

    \b
    Examples:
      bench run --suite main
      bench run --suite main --data data/openkbp --data data/idrid --seeds 0,1,2
      bench run --suite main --data s3://bucket/openkbp
      bench run --suite main --data phantom-hard
      bench run --suite main --methods boltzformer,seem --dry-run
      bench run --suite main --set steps=900 --set learning_rate=5e-4
      bench run --suite main --profile paper --measure
      bench run --suite main --splits splits.json
      bench run --suite main --address auto
      bench run --suite main --address auto --storage s3://bucket/runs
      bench run --suite main --profile gpu --backbone-weights facebook/sam2-hiera-small
      bench run --suite main --weights biomedparse=biomedparse_v1.pt
      bench run --suite main --methods boltzformer,sam --tuned
    """
    from bench import run as driver
    from bench.plan import Request

    request = Request(
        suite=suite,
        data=tuple(data or ()),
        profile=profile,
        changes=tuple(changes or ()),
        methods=options.names(methods),
        backbones=options.names(backbones),
        seeds=options.seed_numbers(seeds),
        executor=executor.value,
        address=address,
        storage=storage,
        tracking_uri=tracking_uri,
        name=name,
        runs_dir=runs_dir,
        backbone_weights=backbone_weights,
        weights=tuple(weights or ()),
        splits=splits,
        tuned=tuned or tuned_from is not None,
        tuned_from=tuned_from,
    )
    console = terminal_console()
    code = driver.dry_run(request, console, measure) if dry_run or measure else driver.run(request, console)
    raise typer.Exit(code)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Name under the runs folder, or a folder.", metavar="NAME|DIR")],
    compare: Annotated[
        str | None,
        typer.Option(help="Another run on the same split: what changed from NAME to it.", metavar="NAME|DIR"),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper/--no-paper", help="The paper's numbers (Tables 1 to 9) in columns beside ours.")
    ] = True,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write tables and figures again from the records, and print the Dice table.

    \b
    Examples:
      bench report main
      bench report main --no-paper
      bench report main --compare main-of-last-week
    """
    from bench.suite_folder import find_suite
    from reports.build import build_report
    from reports.compare import compare as compare_folders
    from reports.tables import to_rich

    folder = find_suite(name, runs_dir)
    console = terminal_console()
    if compare is not None:
        table, files = compare_folders(folder, find_suite(compare, runs_dir))
        console.print(to_rich(table, console.width))
        console.print(f"report   {', '.join(map(str, files))}", highlight=False, soft_wrap=True)
        return
    built = build_report(folder, paper=paper)
    console.print(to_rich(built.main, console.width))
    console.print(f"report   {built.html}", highlight=False, soft_wrap=True)


@app.command()
def phrasings(
    name: Annotated[str, typer.Argument(help="Name under the runs folder, or a folder.", metavar="NAME|DIR")],
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Ask the trained models of a run for every test mask in other words: how much does Dice change?

    A comparison asks for each test mask once, by the first phrasing of its object, and its tables stay so. Here the
    models that read prompts are asked by all other phrasings of the data set too; nothing is trained. The report then
    has two tables more: prompts (spread of Dice over the phrasings of a mask, worst phrasing) and phrasings (Dice of
    each). Stop it at any time: the same command asks the models that are missing.

    \b
    Example:
      bench phrasings main
    """
    from bench.phrasings import ask_phrasings
    from bench.suite_folder import find_suite
    from reports.build import build_report
    from reports.tables import to_rich

    console = terminal_console()
    with progress_bar(console, "asking in other words") as on_progress:
        asked = ask_phrasings(find_suite(name, runs_dir), on_progress)
    built = build_report(asked.folder)
    if built.prompts is not None:
        console.print(to_rich(built.prompts, console.width))
    for run_id, reason in asked.left_out.items():
        console.print(f"not asked {run_id}: {reason}", highlight=False, markup=False, soft_wrap=True)
    earlier = f", {len(asked.earlier)} runs had been" if asked.earlier else ""
    console.print(f"asked    {len(asked.runs)} runs for {asked.prompts:,} phrasings each{earlier}", highlight=False)
    console.print(f"report   {built.html}", highlight=False, soft_wrap=True)


app.command()(predict)


app.command()(profile)
app.command()(ablate)
app.command()(tune)
app.command()(evaluate)
app.command()(import_results)
app.command()(verify)
app.command()(archive)


@app.command("list")
def list_(
    what: Annotated[Listing | None, typer.Argument(help="One of them; default: all.")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """List suites, methods, profiles and runs.

    \b
    Example:
      bench list methods
    """
    console = terminal_console()
    for kind in [what] if what else Listing:
        console.print(_listing(kind, runs_dir))


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Open MLflow's user interface on the store of these runs (until Ctrl-C).

    \b
    Example:
      bench ui --port 5001
    """
    from bench.tracking import store_uri
    from bench.urls import masked

    uri = store_uri(runs_dir)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow runs at {masked(uri)}: open it in a browser")
        return
    database = runs_dir / "mlflow.db"
    if uri.startswith("sqlite:") and not os.environ.get("MLFLOW_TRACKING_URI") and not database.exists():
        raise UserError(f"{database} does not exist: start with `bench run`, or name the folder with --runs-dir")
    print(f"http://127.0.0.1:{port} shows {masked(uri)}; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    # not on the command line, which everybody on this machine sees: the URI may hold a password
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    # MLflow's jobs score language models: eight more processes and 1.8 GB for nothing that is here
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    try:
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """The options of `bench` itself."""
    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell their developers
    if version:
        from bench import __version__

        print(f"boltzbench {__version__}")
        raise typer.Exit()


def main() -> None:
    """The console script: what the user can mend is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except UserError as error:
        _die(str(error))
    except OSError as error:
        if message := full_disk(error):
            _die(message)
        if error.errno not in UNUSABLE or not error.filename:
            raise
        _die(f"{error.filename} cannot be used ({error.strerror}): name another file or folder")


def _die(message: str) -> None:
    # a name in somebody's file may hold what a terminal takes for a command
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(2)


def _listing(kind: Listing, runs_dir: Path):
    """One list as a table."""
    if kind is Listing.runs:
        return _runs(runs_dir)
    if kind is Listing.methods:
        from bench.methods import METHODS

        rows = [[name, m.label, "yes" if m.trained else "no", m.source, m.package] for name, m in METHODS.items()]
        return text_table(["method", "label", "trained", "source", "package"], rows)
    if kind is Listing.profiles:
        from experiments.profiles import PROFILES

        rows = [[name, p.title, ", ".join(p.backbones), _reserved(p)] for name, p in PROFILES.items()]
        return text_table(["profile", "what it is", "backbones", "a trial reserves"], rows)
    from experiments import SUITES

    rows = [
        [
            name,
            suite.title,
            ", ".join(suite.methods),
            ", ".join(map(str, suite.seeds)),
            suite.profile or "by hardware",
        ]
        for name, suite in SUITES.items()
    ]
    return text_table(["suite", "what it is", "methods", "seeds", "profile"], rows)


def _reserved(profile: Profile) -> str:
    """CPUs, GPUs and memory of a trial, or of each of its workers."""
    each = f"{profile.workers_per_trial} workers with " if profile.workers_per_trial > 1 else ""
    gpus = f"{profile.gpus_per_trial:g} GPU, " if profile.gpus_per_trial else ""
    return f"{each}{profile.cpus_per_trial:g} CPU, {gpus}{profile.memory_gib_per_trial:g} GiB"


def _runs(runs_dir: Path):
    from bench.execute import run_state
    from bench.suite_folder import read_suite

    rows = []
    for file in sorted(runs_dir.glob("*/suite.json")):
        suite = read_suite(file.parent, "remove the folder")
        states = [run_state(file.parent / run_id)["state"] for run_id in suite["runs"]]
        done = f"{states.count('finished')}/{len(states)}"
        rows.append([file.parent.name, suite["suite"], suite["profile"], suite["split_hash"], done, suite["command"]])
    return text_table(["run", "suite", "profile", "split", "finished", "command"], rows)
