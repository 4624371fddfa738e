"""The command line: `python -m ray_job …`. Imports neither torch nor Ray until a command needs them."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_job.errors import AccountingError, RayJobError
from ray_job.spec import JobSpec

_DESCRIPTION = "Batch inference for vision-language models on Ray."
_EXIT_CODES = """exit codes:
  0   every row is accounted for, errors within the limits
  1   a fatal error not named below, such as weights that do not load
  2   the command, the spec or the input is wrong
  3   more rows failed than limits.max_errors or limits.max_error_rate allow
  4   rows in and rows out do not add up; `verify` found a problem
  5   the output belongs to a job whose answers would differ
  75  stopped by a signal, or the Ray under the job died; what is committed is whole, --mode resume does the rest
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(arguments.command(arguments))
    except RayJobError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments)
    if arguments.dry_run:
        return _plan(arguments)
    from ray_job.job import run_job

    print(run_job(spec).table())
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments)
    from ray_job.cluster.submit import submit_job

    submission = submit_job(spec, arguments.address, arguments.job_id)
    if arguments.no_wait:
        print(submission.id)
        return 0
    return submission.follow()


def _manifest(arguments: argparse.Namespace) -> int:
    from ray_job.cluster.kubernetes import Claim, KubeOptions, manifest

    chosen = {name: value for name, value in vars(arguments).items() if name in KubeOptions.__slots__}
    chosen["name"] = arguments.name or Path(arguments.spec).stem
    chosen["claims"] = tuple(map(Claim.parse, arguments.claims))
    print(manifest(arguments.kind, _spec(arguments), KubeOptions(**chosen)), end="")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments)
    from ray_job.models.room import shortage
    from ray_job.output.fingerprint import fingerprint_fields, possible_digests
    from ray_job.stages.literal_tags import first_rows_hint
    from ray_job.stages.open_job import open_job

    spec, source, _ = open_job(spec)
    digests = possible_digests(fingerprint_fields(spec, source))
    fingerprint = " or ".join(f"{value} on {device}s" if device else value for device, value in digests.items())
    print(f"{arguments.spec}: reads {source.taken}")
    if source.skipped.num_files:
        print(f"{arguments.spec}: skips {source.skipped.text()}")
    if not source.image_columns and source.prompt.messages_column is None:
        print(f"{arguments.spec}: shows no pictures; if columns hold them, name these in input.image_columns")
    rows = "1 row" if source.num_rows == 1 else f"{source.num_rows} rows"
    hint = first_rows_hint(spec, source)
    if hint:
        print(f"{arguments.spec}: hint: {hint}")
    if (text := shortage(spec)) is not None:
        print(f"{arguments.spec}: hint: {text}")
    print(f"{arguments.spec}: valid; {rows}, fingerprint {fingerprint}")
    for name, other in source.renamed.items():
        print(f"column {name!r}: in the output it is {other!r}, since {name!r} is the output's own")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments)
    from ray_job.plan import plan_job

    plan = plan_job(spec)
    print(json.dumps(plan.to_dict()) if arguments.json else plan.table())
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments)
    from ray_job.views.gallery.preview import preview

    print(preview(spec, arguments.n, seed=arguments.seed))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ray_job.output.verify import verify
    from ray_job.storage.places import locate

    found = verify(locate(arguments.output))
    print(json.dumps(found.to_dict()) if arguments.json else found.table())
    return 0 if found.is_good else AccountingError.exit_code


def _status(arguments: argparse.Namespace) -> int:
    from ray_job.output.status import job_status
    from ray_job.storage.places import locate

    status = job_status(locate(arguments.output))
    print(json.dumps(status.to_dict()) if arguments.json else status.table())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from ray_job.views.html.write import write_report

    print(write_report(arguments.output, arguments.to))
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from ray_job.output.join import join
    from ray_job.storage.places import locate

    print(join(locate(arguments.output), locate(arguments.to)).table())
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(JobSpec.model_json_schema(), indent=2, ensure_ascii=False))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from ray_job.demo.run import run_demo

    return run_demo(arguments.out, num_examples=arguments.examples, seed=arguments.seed)


def _bench(arguments: argparse.Namespace) -> int:
    import importlib

    module = importlib.import_module(f"ray_job.bench.{arguments.which}")
    return int(module.main(arguments.arguments))


def _spec(arguments: argparse.Namespace) -> JobSpec:
    overrides = list(arguments.set)
    if arguments.limit is not None:
        overrides.append(f"input.limit={arguments.limit}")
    if getattr(arguments, "mode", None) is not None:
        overrides.append(f"output.mode={arguments.mode}")
    if getattr(arguments, "retry_failed", False):
        overrides.append("output.retry_failed=true")
    return JobSpec.from_yaml(arguments.spec, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ray_job",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = _add(commands, "run", _run, "run a job", takes_spec=True)
    submit = _add(commands, "submit", _submit, "run a job on a cluster, by Ray's Jobs API", takes_spec=True)
    submit.add_argument("--address", metavar="URL", help="the dashboard's, http://head:8265; default: RAY_ADDRESS")
    submit.add_argument("--job-id", metavar="ID", help="makes retries the same run: they attach to it, or resume it")
    submit.add_argument("--no-wait", action="store_true", help="print the submission's id and return")
    for command in (run, submit):
        command.add_argument("--mode", metavar="MODE", help="output.mode: error, resume, append or overwrite")
        command.add_argument("--retry-failed", action="store_true", help="with resume or append: do failed rows again")
    run.add_argument("--dry-run", action="store_true", help="plan the job instead of running it")
    _add_manifest(commands)
    _add(commands, "validate", _validate, "check a spec, its input's columns and its model's files", takes_spec=True)
    plan = _add(commands, "plan", _plan, "rows, pictures, tokens and bad rows of a job, from headers", takes_spec=True)
    for command in (run, plan):
        command.add_argument("--json", action="store_true", help="print the plan as JSON")
    preview = _add(commands, "preview", _preview, "answer a few rows of a job and write nothing", takes_spec=True)
    preview.add_argument("-n", type=int, default=8, metavar="N", help="rows (%(default)s)")
    preview.add_argument("--seed", type=int, metavar="N", help="draw them at random; otherwise they are the first")
    verify = _add(commands, "verify", _verify, "read every part of an output and hold it against its manifest")
    status = _add(commands, "status", _status, "how a run stands, living or dead, from its output's files")
    for command in (verify, status):
        command.add_argument("output", metavar="OUT", help="the output's folder or URI")
        command.add_argument("--json", action="store_true", help="print one JSON object")
    report = _add(commands, "report", _report, "write one HTML page about a run: charts, errors, pictures and answers")
    report.add_argument("output", metavar="OUT", help="the output's folder or URI; the run may be running or finished")
    report.add_argument("--to", metavar="FILE", help="where to write it (OUT/_report.html)")
    joining = _add(commands, "join", _join, "put the answers about documents' pages together, a text a document")
    joining.add_argument("output", metavar="OUT", help="the output's folder or URI")
    joining.add_argument("--to", required=True, metavar="DIR", help="where to write: a folder or URI")
    demo = _add(commands, "demo", _demo, "make pictures, ask the built-in model about them, compare with the truth")
    demo.add_argument("--out", default="demo-run", metavar="DIR", help="folder for pictures and output (%(default)s)")
    demo.add_argument("--examples", type=int, default=120, metavar="N", help="pictures to make (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="which pictures (%(default)s)")
    bench = _add(commands, "bench", _bench, "measure the engine or the pipeline around it")
    kinds = ["engine", "job", "whole", "agreement", "documents", "video", "library", "products", "quantization"]
    bench.add_argument("which", choices=kinds)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="of the benchmark; --help shows them")
    _add(commands, "schema", _schema, "print the JSON schema of a spec")
    return parser


def _add_manifest(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(commands, "manifest", _manifest, "write a job for Kubernetes: KubeRay's RayJob or RayCronJob")
    command.add_argument("kind", choices=["rayjob", "raycronjob"])
    _add_spec(command)
    options: list[tuple[str, dict[str, Any]]] = [
        ("--image", {"required": True, "help": "container image with ray_job and its Ray"}),
        ("--name", {"help": "of the objects; default: the spec's file name"}),
        ("--namespace", {"help": "default: kubectl's"}),
        ("--gpus", {"type": int, "default": 1, "help": "GPUs of a worker's pod; 0: none (%(default)s)"}),
        ("--cpus", {"type": int, "default": 8, "help": "CPUs of a worker's pod (%(default)s)"}),
        ("--memory", {"default": "32Gi", "help": "of a worker's pod (%(default)s)"}),
        ("--retries", {"type": int, "default": 3, "help": "new clusters tried after a failure (%(default)s)"}),
        ("--deadline-s", {"type": int, "default": 86400, "help": "seconds a job may take in all (%(default)s)"}),
        ("--ttl-s", {"type": int, "default": 600, "help": "seconds its pods stay afterwards (%(default)s)"}),
        ("--queue", {"help": "a local queue of Kueue (rayjob)"}),
        ("--schedule", {"help": "five cron fields, as in '0 3 * * *' (raycronjob)"}),
        ("--time-zone", {"help": "of the schedule, as in Europe/Berlin (raycronjob; KubeRay 1.7)"}),
        ("--secret", {"help": "whose keys become environment variables, such as AWS_ACCESS_KEY_ID"}),
    ]
    for name, settings in options:
        command.add_argument(name, **settings)
    command.add_argument(
        "--claim", action="append", default=[], dest="claims", metavar="NAME:/PATH", help="mount a volume claim"
    )


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: object,
    text: str,
    takes_spec: bool = False,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    if takes_spec:
        _add_spec(parser)
    return parser


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC.yaml", help="the job")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a field: section.key=value"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
