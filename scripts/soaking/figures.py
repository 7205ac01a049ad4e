"""The figures of a run, as a table."""

from collections import Counter

from answers import SUCCESS
from callers import ANSWERED, BROKEN_OFF, CUT, LEFT
from faults import OUTAGE, VICTIMS


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def rows(options, seconds, callers, storm, node, heights, records):
    results = callers.results
    how = Counter(result.how for result in results)
    answered = [result for result in results if result.how == ANSWERED]
    names = Counter((result.call.function.platform, result.said.name) for result in answered)
    succeeded = sum(count for (_, name), count in names.items() if name == SUCCESS)
    yield "functions, callers, seed", f"{options.functions}, {options.callers}, {options.seed}"
    yield "calls", f"{len(results)} in {seconds:.0f} s ({len(results) / seconds:.0f} a second)"
    yield "  answered", f"{len(answered)}, of which {succeeded} with success"
    for (platform, name), count in sorted(names.items()):
        if name != SUCCESS:
            yield f"    {platform}: {name}", count
    yield "  callers that went away", how[LEFT]
    yield "  cut by a kill of the daemon", how[CUT]
    yield "  broken off behind their heads by a kill", how[BROKEN_OFF]
    counted = Counter(event.kind for event in storm.events)
    for kind in VICTIMS:
        yield f"kills of a {kind}", counted[kind]
    yield "outages of the registry", counted[OUTAGE]
    yield "starts of the daemon", node.starts
    for name, count in sorted(Counter(deploy.name for deploy in storm.deploys).items()):
        yield f"deploys: {name}", count
    yield "instances at the height", max(heights, default=0)
    took = [1000 * (r.ended - r.begun) for r in answered if r.call.quick and r.said.name == SUCCESS]
    yield "plain calls, p50", f"{quantile(took, 0.5):.1f} ms"
    yield "plain calls, p99", f"{quantile(took, 0.99):.1f} ms"
    yield "plain calls, longest", f"{max(took, default=0):.0f} ms"
    for name, peak in node.peaks.items():
        yield f"peak memory of the {name}", f"{peak / 2**20:.1f} MiB"
    invocations = sum(record["kind"] == "invocation" for record in records)
    yield "records", f"{invocations} of calls, {len(records) - invocations} of pulls"


def show(table):
    for name, value in table:
        print(f"{name:<48} {value}")
