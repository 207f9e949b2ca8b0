"""``bitseg doctor`` and ``bitseg warmup``."""

import click

from .common import json_option, model_option, print_table


@click.command()
@model_option
def warmup(model):
    """Compile everything that a model needs now, so that nobody waits for it later."""
    from ..doctor import warm_up
    from ..kernels.compilation import compile_in_two_processes

    compile_in_two_processes()
    done = warm_up(model)
    folder = click.format_filename(done.folder)
    if done.compiled:
        click.echo(f"{model}: compiled {done.compiled} of its kernels in {done.seconds:.1f} s, kept in {folder}")
    else:
        click.echo(f"{model}: all kernels are there already, in {folder} ({done.seconds:.1f} s)")


@click.command()
@json_option
@click.pass_context
def doctor(context, as_json):
    """Check whether bitseg works here, and say what would make it faster.

    Exit status 1 if something is broken.
    """
    import json

    from ..doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_report(report)
    context.exit(1 if report["problems"] else 0)


def _print_report(report):
    rows = [*report["versions"].items(), *report["environment"].items()]
    if "cpu" in report:
        rows += _machine(report)
    print_table(rows)
    for title, sentences in (("Broken", report["problems"]), ("Advice", report["advice"])):
        for sentence in sentences:
            click.echo(f"{title}: {sentence}")
    if not report["problems"]:
        click.echo("Nothing is broken.")


def _machine(report):
    cpu, processors, cache, test = report["cpu"], report["processors"], report["cache"], report["self_test"]
    features = {True: [], False: []}
    for name, present in cpu["features"].items():
        features[present].append(name)
    limit = processors["limit"]
    kept = f"{cache['folder']}: {cache['kernels']} kernels, {cache['bytes'] / 1e6:.1f} MB" if cache["writable"] else "-"
    if test["error"]:
        tested = test["error"]
    else:
        tested = f"{'equals' if test['identical'] else 'differs from'} the NumPy network, {test['seconds']:.1f} s"
    return [
        ("CPU", f"{cpu['model']}; kernels are compiled for {cpu['compiled_for']}"),
        ("features", f"{', '.join(features[True]) or 'none'}; without {', '.join(features[False]) or 'none'}"),
        (
            "processors",
            f"{processors['usable']} of {processors['present']}, "
            f"{'no limit' if limit is None else f'limited to the time of {limit:g}'}",
        ),
        ("model", f"{report['model']['name']}: {report['model']['error'] or 'checksum right'}"),
        ("kernels", ", ".join(f"{count} {kernel}" for kernel, count in report["kernels"].items()) or "-"),
        ("cache", kept),
        ("self-test", tested),
    ]
