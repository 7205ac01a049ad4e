//! What stands after the options in `--help` of the commands that look at a node.

pub(super) const LOGS: &str = "\
Examples:
  skiff logs resize
  skiff logs resize -f --since 10m

`skiff logs --help` tells of exit codes and output.";

pub(super) const LOGS_LONG: &str = "\
Writes the lines of a function's instances, the platform's lines among them, from the oldest that is kept to
the newest: `INSTANCE | LINE`. With --follow it goes on until the function is deleted or the node ends. A
function whose first deploy has failed has a log too.

A line belongs to a request (--request) where that is known: the platform's lines about it, and the lines of a
function that works on one call at a time. Lines that were lost, for a disk or a reader was too slow, are told
where they are missing.

Examples:
  skiff logs resize
  skiff logs resize -f --since 10m
  skiff logs resize --times --since 2026-01-01T12:00:00Z
  skiff logs resize --request 5a3f1c2e-… --output json | jq -r .line

Exit codes:
  0  the lines have been written, nobody reads them any more, or the node was told to end
  2  bad usage, no such function, a node that keeps no logs, or no node that listens
  3  the host failed, or the node died meanwhile
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM

With --output json, on the standard output, one line for each line:
  {\"time\":\"2026-01-01T12:00:00.123456789Z\",\"instance\":ID,\"revision\":3,
   \"stream\":\"stdout|stderr|platform|events|requests|metrics\",\"request_id\":ID,\"line\":TEXT}
`request_id` is left out where it is not known, instance and revision where Skiff itself tells of lost lines.";

pub(super) const PS: &str = "\
Examples:
  skiff ps
  skiff ps --output json | jq -r .id

`skiff ps --help` tells of exit codes and output.";

pub(super) const PS_LONG: &str = "\
One line for each instance, also of former revisions that work on their last calls. STATE is `starting` (its id
is not known then), `ready`, `frozen` (ready, with nothing to do) or `leaving` (it gets no more calls); AGE is
since its start began; CALLS is how many it works on.

Examples:
  skiff ps
  skiff ps --output json | jq -r .id

Exit codes:
  0  it worked
  2  bad usage, or no node that listens
  3  the host failed

With --output json, on the standard output, one line for each instance:
  {\"id\":ID|null,\"namespace\":…,\"function\":…,\"revision\":3,\"state\":\"starting|ready|leaving\",
   \"since_unix_ms\":…,\"running\":0,\"frozen\":true,\"memory_bytes\":…,\"memory_peak_bytes\":…,\"cpu_ms\":…}";

pub(super) const TOP: &str = "\
Examples:
  skiff top
  skiff top --output json | jq -r 'select(.waiting > 0).name'

`skiff top --help` tells of exit codes and output.";

pub(super) const TOP_LONG: &str = "\
A line for each function, those first that use most CPU time, then most memory: its instances (and those that
start), calls that run and wait, slots that are free, and what its instances use. 100 % is one core. On a
terminal it goes on until Ctrl-C; elsewhere it looks twice within a second and writes one table.

Examples:
  skiff top
  skiff top --interval 500ms --rows 50
  skiff top --output json | jq -r 'select(.waiting > 0).name'

Exit codes:
  0  the table has been written
  2  bad usage, or no node that listens (any more)
  3  the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM

With --output json, on the standard output, once, one line for each function:
  {\"name\":…,\"namespace\":…,\"instances\":1,\"starting\":0,\"running\":0,\"waiting\":0,\"free\":1,
   \"memory_bytes\":…,\"cpu_percent\":12.5,\"calls_per_second\":3.0}";

pub(super) const EVENTS: &str = "\
Examples:
  skiff events
  skiff events --output json | jq -r 'select(.event == \"deploy_failed\").reason'

`skiff events --help` tells of exit codes and output.";

pub(super) const EVENTS_LONG: &str = "\
A line for each thing that happens to a function from now on (deploying, deployed, deploy_failed, deleted), until
the node ends. Who reads too slowly is told how many were missed.

Examples:
  skiff events
  skiff events --output json | jq -r 'select(.event == \"deploy_failed\").reason'

Exit codes:
  0  the node was told to end, or nobody reads any more
  2  bad usage, or no node that listens
  3  the host failed, or the node died meanwhile
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM

With --output json, on the standard output, one line for each event:
  {\"unix_ms\":…,\"namespace\":…,\"function\":…,\"event\":\"deployed\",\"revision\":3}
or {\"event\":\"missed\",\"count\":7}";
