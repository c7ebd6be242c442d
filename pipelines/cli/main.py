"""The `smec` command. Each command imports its job when it runs, so that --help answers at once."""

import atexit
import gc
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.command import fail, run_job
from smec_core import __version__
from smec_core.errors import InputError

app = typer.Typer(
    name="smec",
    help="Learns one small nested vector from your embeddings and judgements, and compresses your corpus with it.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 3 a new model was refused, "
    "4 another process has the run, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings, one key: value a line.")]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, typed, may be given again; wins over --config."),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
Data = Annotated[str | None, typer.Option(help="Dataset folder or URI: corpus, queries, qrels in Parquet.")]
Gpu = Annotated[str | None, typer.Option(help="auto, on or off.")]
TrainGpu = Annotated[str | None, typer.Option(help="auto, on, off, or wait: for GPUs that the cluster may start.")]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"smec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of smec itself; the help text is the app's."""


@app.command()
def sample(
    out: Annotated[str, typer.Argument(help="Folder to make.")],
    size: Annotated[int | None, typer.Option(help="Pairs to take; default: all, about 20 000.")] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Build a sample dataset from the documentation that every Python installation holds; no download.

    [dim]Example: smec sample outputs/sample --size 4000[/dim]
    """
    run_job("sample", {"out": out, "size": size}, config, assign, json_file)


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="Dataset folder or URI.")],
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Validate a dataset row by row and print what it holds.

    [dim]Example: smec check data/products[/dim]
    """
    run_job("check", {"data": data}, config, assign, json_file)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(metavar="TEXT_DIR", help="Folder or URI: corpus, queries and qrels.")],
    data: Annotated[str, typer.Argument(help="Dataset folder or URI to make.")],
    encoder: Annotated[str | None, typer.Option(help="sentence-transformers model, by name or path.")] = None,
    workers: Annotated[int | None, typer.Option(help="Encoders side by side; default: one a GPU, else a CPU.")] = None,
    gpu: Gpu = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Embed text with judgements into a dataset, on Ray Data.

    TEXT_DIR is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv),
    or holds Parquet as datasets on the Hugging Face hub do: corpus/*.parquet,
    queries/*.parquet (_id or id, title, text), qrels/test.tsv or .parquet.
    Queries that no qrels name are left out.

    The encoder's own prompts for queries and documents are used;
    --set query_prompt='"query: "' (and document_prompt) gives another.
    Further settings: batch_size, rows_per_file.

    A killed run goes on with the same command; until the dataset is whole, it
    lies in DATA.partial. Where it is there already, nothing is done; one of
    another text, encoder or setting is refused.

    [dim]Example: smec ingest beir/scifact data/scifact --encoder sentence-transformers/all-mpnet-base-v2[/dim]
    """
    flags = {"source": source, "output": data, "encoder": encoder, "workers": workers, "gpu": gpu}
    run_job("ingest", flags, config, assign, json_file)


@app.command()
def train(
    data: Data = None,
    dims: Annotated[str | None, typer.Option(help="Target dims, as 384,192,96.")] = None,
    out: Annotated[str | None, typer.Option(help="Model folder to write.")] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="Ray Train workers; a range is elastic.")
    ] = None,
    gpu: TrainGpu = None,
    base: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="Model folder to add smaller dims to.")
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model folder whose weights the training starts at.")
    ] = None,
    compatible: Annotated[
        bool, typer.Option("--compatible", help="With --warm-start: new queries still find what MODEL compressed.")
    ] = False,
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI that all nodes reach, for the run's state.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Run name; default: a hash of settings and data.")] = None,
    preset: Annotated[str | None, typer.Option(help="paper: the method as published.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    dry_run: Annotated[
        bool | None, typer.Option("--dry-run", help="Say how long it will take and whether it fits, and train nothing.")
    ] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Train a nested embedding on Ray, evaluate it, store it and record it in MLflow.

    Every setting of the method can be given with --set or --config; smec_core/config.py lists them,
    and pipelines/runtime/settings.py those of the run (checkpoints, memory, elastic workers).
    Precedence: flag, --set, --config, --preset, default. The same settings and data give the same run name; a finished
    run is returned and not trained again, an interrupted one goes on from its last checkpoint.

    --warm-start goes on from a model of the same dims with the data as it is now, in one pass without a guard, so
    compare the two before you use the new one. --compatible is --set compatible=1; another number weighs the search of
    old documents differently.

    --dry-run measures this machine for a second and prints steps, time, memory and disk; it starts and makes nothing.

    [dim]Example: smec train --data data/products --dims 384,192,96 --out models/products --workers 4[/dim]
    """
    flags = {"data": data, "dims": dims, "out": out, "workers": workers, "gpu": gpu, "storage": storage, "name": name}
    others = {"seed": seed, "base": base, "warm_start": warm_start, "compatible": _compatible(compatible)}
    others |= {"dry_run": dry_run}
    run_job("train", flags | others, config, assign, json_file, _preset(preset))


@app.command()
def tune(
    data: Data = None,
    space: Annotated[
        str | None, typer.Option(help="Search space: a YAML file, or one of those shipped: smec, full, quick.")
    ] = None,
    dims: Annotated[str | None, typer.Option(help="Target dims, as 384,192,96.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the results.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, those of earlier starts included; 20.")] = None,
    hours: Annotated[float | None, typer.Option(help="Most time for the search.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="mean over dims, one dim, or either and ,seconds: a front of quality against time."),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N", help="Workers of each trial; 1 trains within the trial.")
    ] = None,
    gpu: TrainGpu = None,
    confirm: Annotated[
        int | None, typer.Option(help="Seeds with which the best settings and the defaults are compared on test.")
    ] = None,
    train_best: Annotated[
        bool | None, typer.Option("--refit", help="Train the best settings on train + dev, into OUT/model.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Folder or URI that all nodes reach, for the study's state.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Study name; default: a hash of space, settings and data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search and of every training.")] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Search settings of the method on Ray Tune, by dev figures: Optuna proposes, ASHA ends what falls behind.

    The first trial is the defaults: what --set and --config give, else those of smec train. A killed study goes on with
    the same command; more --trials extend it. OUT/best.yaml is a --config of smec train.

    [dim]Example: smec tune --data data/products --dims 384,192,96 --space smec --trials 30 --out tuned/products[/dim]
    """
    flags = {"data": data, "space": space, "dims": dims, "out": out, "trials": trials, "hours": hours, "gpu": gpu}
    flags |= {"objective": objective, "workers": workers, "confirm": confirm, "train_best": train_best}
    run_job("tune", flags | {"storage": storage, "name": name, "seed": seed}, config, assign, json_file)


@app.command()
def experiment(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="compare, ablation, gradient-variance, ware, queue-size.")
    ],
    data: Annotated[str | None, typer.Option(help="Dataset folders or URIs, several with commas.")] = None,
    dims: Annotated[str | None, typer.Option(help="Dims to compare at, as 384,192,96.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the page, its figures and tables.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    methods: Annotated[str | None, typer.Option(help="compare: what to compare SMEC with; default: all.")] = None,
    direction: Annotated[
        str | None, typer.Option(help="queries-to-corpus, or corpus-to-queries: the documents search the queries.")
    ] = None,
    exclude_self: Annotated[
        bool | None, typer.Option("--exclude-self", help="A query is itself a document, that of its own id.")
    ] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Run one of the paper's experiments on any dataset, and write a page of figures and tables.

    compare: SMEC beside truncation, random projection, PCA, Search-Adaptor, Matryoshka-Adaptor and MRL. ablation: its
    parts added and removed. gradient-variance: MRL beside SMRL. ware: which dims ADS keeps. queue-size: the memory.

    Finished trainings are kept in OUT: the same command goes on with a killed one.

    [dim]Example: smec experiment compare --data data/products --dims 384,192,96 --seeds 3 --out results/products[/dim]
    """
    flags = {"experiment": name, "data": data, "dims": dims, "out": out, "seeds": seeds, "methods": methods}
    run_job("experiment", flags | {"direction": direction, "exclude_self": exclude_self}, config, assign, json_file)


@app.command()
def evaluate(
    data: Data = None,
    model: Annotated[str | None, typer.Option(help="Model folder.")] = None,
    split: Annotated[str | None, typer.Option(help="train, dev, test or held_out; default: test, else dev.")] = None,
    baselines: Annotated[bool | None, typer.Option("--baselines", help="Score truncation, PCA and full too.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray tasks side by side; 1: without Ray.")] = None,
    exclude_self: Annotated[
        bool | None, typer.Option("--exclude-self", help="Never return the document with the query's own id.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Measure searches in this store: exact, faiss-hnsw, lance, pgvector.")
    ] = None,
    funnel: Annotated[
        str | None, typer.Option(metavar="A:B", help="Search by A dims, order the shortlist by B; with --index.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, int8, or binary, which rescores a shortlist; with --index.")
    ] = None,
    shortlist: Annotated[int | None, typer.Option(help="Rows to order again; 100; with --index.")] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Score a model at every prefix: nDCG@10, recall, MRR. With --index: whole searches in a real vector store.

    --index measures quality, bytes a vector, the size of the index and milliseconds a query: of each of the model's
    dims, or of a funnel search beside the two plain ones it is made of. All but exact need the extra `stores` of
    smec-ray. pgvector loads into a schema of its own, which it drops, on the server that PGHOST, PGUSER,
    PGPASSWORD, PGDATABASE name.

    [dim]Example: smec evaluate --data data/products --model models/products --baselines --json figures.json[/dim]

    [dim]Example: smec evaluate --data data/products --model models/products --index faiss-hnsw --funnel 48:384[/dim]
    """
    flags = {"data": data, "model": model, "split": split, "baselines": baselines, "exclude_self": exclude_self}
    search = {"index": index, "funnel": funnel, "dtype": dtype, "shortlist": shortlist}
    run_job("evaluate", flags | {"workers": workers} | search, config, assign, json_file)


@app.command()
def compress(
    model: Annotated[str | None, typer.Option(help="Model folder.")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", help="Parquet file, folder or URI with id, embedding.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Published folder; each run adds a version.")] = None,
    dim: Annotated[
        str | None, typer.Option(help="Dims to keep: 96, or 384,96 for a folder of files each.", metavar="DIMS")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, int8 or binary (with int8 to rescore).")] = None,
    on_bad_row: Annotated[
        str | None, typer.Option(help="fail, or quarantine: set bad rows apart, with the reason.")
    ] = None,
    upgrade: Annotated[
        bool | None, typer.Option("--upgrade", help="The input holds vectors of the model that this one extends.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Actors side by side.")] = None,
    gpu: Gpu = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Compress embeddings with a model, on Ray Data, into a new version of a published folder.

    [dim]Example: smec compress --model models/products --input data/products/corpus --output vectors --dim 96[/dim]
    """
    flags = {"model": model, "input": input_, "output": output, "dim": dim, "dtype": dtype, "workers": workers}
    run_job("compress", flags | {"on_bad_row": on_bad_row, "upgrade": upgrade, "gpu": gpu}, config, assign, json_file)


@app.command()
def retrain(
    compatible: Annotated[
        bool, typer.Option("--compatible", help="New queries still find what the champion compressed.")
    ] = False,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Train a challenger on the data as it is now, and release it where it beats the champion; for schedulers.

    Reads and validates the data, measures its drift, trains, compares champion, challenger, truncation and PCA on
    queries that no champion was ever trained on, and where the gate holds: compresses the corpus into a new version,
    sets the alias `champion` in MLflow's registry, and puts the version in force. Nothing new: it ends at once. Killed
    anywhere, the old release stays in force, and the same command goes on.

    With --compatible the challenger starts at the champion's weights and learns to find its documents, too: an index
    can be refreshed bit by bit. The gate then asks for that as well.

    pipelines/retrain/settings.py lists the settings; README.md has an example.

    [dim]Example: smec retrain --config retrain.yaml[/dim]

    [dim]Exit codes: 0 released, or nothing to do; 2 bad data; 3 the gate refused; 4 another one is running.[/dim]
    """
    start = "warm" if compatible else None
    flags = {"train.compatible": _compatible(compatible), "train.start": start}
    run_job("retrain", flags, config, assign, json_file)


@app.command()
def rollback(
    to: Annotated[
        str | None, typer.Option(help="Published version, as v0003; default: the last of the model before.")
    ] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Put an earlier release of smec retrain in force again: its model and its vectors, together.

    Without --to, the last release of the model before; --to also goes to an older corpus of the same model.

    [dim]Example: smec rollback --config retrain.yaml[/dim]
    """
    run_job("rollback", {"to": to}, config, assign, json_file)


@app.command()
def export(
    model: Annotated[str | None, typer.Option(help="Model folder.")] = None,
    to: Annotated[str | None, typer.Option(help="onnx, faiss, sentence-transformers or numpy.")] = None,
    out: Annotated[
        str | None, typer.Option(help="File (onnx, faiss) or folder to write; an earlier export there is replaced.")
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Dims to keep; default: all, to be cut by whoever uses it.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="sentence-transformers only: the model that made the original vectors, by name or path."),
    ] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Export a model to another tool, and check there that it gives the same vectors at every dim.

    onnx: a graph, embeddings in, unit vectors out. faiss: an empty index that takes original embeddings.
    sentence-transformers: the encoder with the model behind it, text in. numpy: a matrix and a small file that reads
    it, for query services without torch.

    An export that differs from the model by more than 1e-5 fails and leaves nothing.
    All but numpy need the extra export of this package.

    [dim]Example: smec export --model models/products --to onnx --out products.onnx --dim 96[/dim]
    """
    flags = {"model": model, "to": to, "out": out, "dim": dim, "encoder": encoder}
    run_job("export", flags, config, assign, json_file)


@app.command()
def serve(
    model: Annotated[str | None, typer.Option(help="Model folder; on a cluster, one that all nodes reach.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: 127.0.0.1, this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: 8000.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Processes that answer; 1.")] = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Serve a model on Ray Serve: original embeddings in, nested vectors out, over HTTP and by Serve handle.

    POST /encode takes {"inputs": [[...], ...], "dim": 96}; GET /healthz and /info. There is no login: whoever reaches
    the port may use it. Runs until Ctrl-C. On the cluster of RAY_ADDRESS it returns when the application runs there,
    and in place of one that is there already, without a pause: so a new model takes over.

    pipelines/serve/job.py lists the settings (batch size and wait, rows a request).

    [dim]Example: smec serve --model models/products --replicas 2[/dim]
    """
    run_job("serve", {"model": model, "host": host, "port": port, "replicas": replicas}, config, assign, None)


# what follows the command belongs to it
@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Command of smec with its arguments.")],
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard, http://HOST:8265; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS."),
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option("--id", help="Name of the job; default: a hash of command, files, environment and code."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Environment for the job, may be given again. No place for secrets."),
    ] = None,
    detach: Annotated[bool | None, typer.Option("--detach", help="Leave once the job is submitted.")] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Run a command of smec as a job on a Ray cluster: print its log, end with its exit code.

    Sends this project's code and the files of the command's --config and
    --space, nothing else. All other paths are those of the cluster's machines:
    absolute, or URIs. The machines have all other packages installed.

    The job gets MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID and each --env.
    Whoever holds the cluster's token can read them: passwords belong into the
    environment of the machines.

    A job that runs is followed and not started twice: give the command again
    after a lost connection. Once it has ended, the same command starts anew.
    With --id, one that has succeeded is not run again: for schedulers, which
    name each planned run and may retry it.

    Ctrl-C and --detach leave the job running. A job that was stopped, or was
    lost with its cluster, gives exit code 1.

    [dim]Example: smec submit --address http://127.0.0.1:8265 -- train --config train.yaml --out /shared/model[/dim]
    """
    flags = {"command": command, "address": address, "id": job_id, "env": env or None, "detach": detach}
    run_job("submit", flags, config, assign, json_file)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(help="Model folder, or a study's.")],
    out: Annotated[str | None, typer.Option(help="HTML file to write.")] = None,
    config: Config = None,
    assign: Assign = None,
    json_file: Json = None,
) -> None:
    """Write one HTML page about a model, or about a study of smec tune; opens offline.

    A model's shows quality against dims, convergence, importance of dims and settings; a study's parallel coordinates,
    importance of settings, quality against seconds, and every trial.

    [dim]Example: smec report models/products --out report.html[/dim]
    """
    run_job("report", {"folder": folder, "out": out}, config, assign, json_file)


def _compatible(is_wanted: bool) -> float | None:
    from smec_core.config import COMPATIBLE

    return COMPATIBLE if is_wanted else None


def _preset(name: str | None) -> Mapping[str, Any] | None:
    from smec_core.config import PAPER_PRESET

    if name not in (None, "paper"):
        fail(InputError(f"--preset {name}: unknown; known: paper"))
    return PAPER_PRESET if name else None


# typer breaks lines where the docstring does, and again where the terminal ends
for _command in app.registered_commands:
    _paragraphs = (inspect.getdoc(_command.callback) or "").split("\n\n")
    _command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in _paragraphs)


def main() -> None:
    """Entry point of `smec`."""
    # what is held at the end goes with the process; to look through all modules for cycles takes a second
    atexit.register(gc.freeze)
    app()
