//! What stands after the options in `--help` of the commands of a node.

pub(super) const SERVE: &str = "\
Examples:
  skiff serve
  skiff serve --api-listen 127.0.0.1:9080 --api-keys /etc/skiff/keys

`skiff serve --help` tells of signals, exit codes and output.";

pub(super) const SERVE_LONG: &str = "\
Serves until SIGINT or SIGTERM. SIGINT stops all instances with their functions' grace; SIGTERM, which service
managers send, leaves them to the next `skiff serve` of the same directories, unless --stop-instances is given.
What is deployed stays deployed either way, and calls that come meanwhile wait. A second signal ends it without waiting for running requests.

Each invocation, and each pull of an image, is billed as its platform does it: a record of it is in `meter` in the
state directory before its caller has the whole answer (`skiff usage`). A disk that is full stops no function;
calls go on and are counted as unbilled.

The node's socket has the control API (GET /openapi.json tells what it is) and the invoke APIs of both vendors;
each function has a socket of its own for plain HTTP. All are root's alone, or also the members' of
--socket-group. A socket that systemd hands over (sd_listen_fds(3)) takes the place of the node's; who waits for
it (sd_notify(3)) is told when the node serves.

Where --max-instances or --max-memory leave no room for another instance, idle ones of all functions stop, the
least recently used first; what is provisioned stays. Where there are none, calls wait as for a busy instance,
and get their platform's throttling error when they have waited for a minute.

What functions and their platforms write goes to files below the state directory, logs/NAMESPACE/NAME/, which
`skiff logs` reads: at most --log-files of --log-size for each function. With --log-to stdout or journal it goes
to the standard output instead. A disk, or a reader, that stands still costs lines, which are counted and told
where they are missing; it holds up no call.

Examples:
  Serve, and deploy from another terminal:
    skiff serve
    skiff deploy function.toml
    curl --unix-socket /run/skiff/functions/resize.sock http://resize/path

Exit codes:
  0  it was told to end, and everything is clean
  2  bad usage
  3  the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM before it served

With --output json, on the standard output, for each socket:
  {\"event\":\"serving\",\"address\":\"unix:/run/skiff/skiff.sock\"}
With --log-to stdout, log lines are there too, as `skiff logs --output json` has them, with `namespace` and
`function` in each.";

pub(super) const STOP: &str = "\
Examples:
  skiff stop
  systemctl stop skiff-instances   (where Skiff's package is installed: the node first, then all instances)

`skiff stop --help` tells of exit codes and output.";

pub(super) const STOP_LONG: &str = "\
A node that gets SIGTERM, or is killed, leaves its instances to the next `skiff serve`. Where there will be none,
this stops them with their functions' grace, and removes what is left of the run. What is deployed stays
deployed. A node that serves is not stopped: end it first, or send it SIGINT, which does both.

Examples:
  skiff stop

Exit codes:
  0  nothing runs any more
  2  bad usage
  3  a node serves, or the host failed

With --output json, on the standard output:
  {\"event\":\"stopped\",\"instances\":2}";

pub(super) const DEPLOY: &str = "\
Examples:
  skiff deploy function.toml
  skiff deploy s.yaml --service resize --max-instances 20 --provisioned 1

`skiff deploy --help` tells of exit codes and output.";

pub(super) const DEPLOY_LONG: &str = "\
Makes a revision of the function: its image is pulled and one instance is started. Calls go to the former
revision until that instance is ready, then to the new one; the former ends after its last call. A revision
that cannot start is told and never takes calls. The file may have `${env(NAME)}` (s.yaml): the variables are
those of this command.

What is deployed is kept on disk, its environment variables among it, for root alone. Credentials are not:
name where a role's come from (`role` in the file).

Examples:
  skiff deploy function.toml
  skiff deploy s.yaml --service resize --max-instances 20 --provisioned 1

Exit codes:
  0  the new revision takes calls
  2  bad usage: a file that is not valid, no node that listens
  3  the pull, the start or the host failed; the former revision goes on

With --output json, on the standard output, the function as `skiff get` tells it.";

pub(super) const FUNCTIONS: &str = "\
Examples:
  skiff functions
  skiff functions --output json | jq -r .name

`skiff functions --help` tells of exit codes and output.";

pub(super) const FUNCTIONS_LONG: &str = "\
Examples:
  skiff functions
  skiff functions --output json | jq -r .name

Exit codes:
  0  it worked
  2  bad usage, or no node that listens
  3  the host failed

With --output json, on the standard output, one line for each function, as `skiff get` tells it.";

pub(super) const GET: &str = "\
Examples:
  skiff get resize
  skiff get resize --namespace default

`skiff get --help` tells of exit codes and output.";

pub(super) const GET_LONG: &str = "\
Examples:
  skiff get resize
  skiff get resize --namespace default

Exit codes:
  0  it is there
  2  bad usage, no such function, or no node that listens
  3  the host failed

On the standard output, as JSON in any case (with --output json in one line):
  {\"namespace\":…,\"name\":…,\"platform\":\"fc\",\"state\":\"Active\",\"revision\":3,\"image\":…,\"digest\":…,
   \"scaling\":{\"max_instances\":10,\"provisioned\":0,\"idle_s\":300,
    \"max_memory_mib\":null},
   \"instances\":{\"warm\":1,\"starting\":0,\"leaving\":0,\"running\":0,\"free\":1,\"waiting\":0},
   \"last_update\":{\"revision\":3,\"status\":\"Successful\",\"reason\":null}, …}";

pub(super) const TRACE: &str = "\
Examples:
  skiff trace 1-6748d2a1-0a2b3c4d5e6f
  skiff trace 1-6748d2a1-0a2b3c4d5e6f --svg cold.svg

`skiff trace --help` tells of exit codes and output.";

pub(super) const TRACE_LONG: &str = "\
Draws the steps of one of the last 4,096 invocations since the node began, as bars beside their times: how long it
waited for an instance, what the start of that took (rootfs, network, spawn, listen, initialize; a start may have
begun before the call), and the invocation itself.

Examples:
  skiff trace 1-6748d2a1-0a2b3c4d5e6f
  skiff trace 1-6748d2a1-0a2b3c4d5e6f --svg cold.svg
  skiff logs resize --output json | jq -r 'select(.request_id).request_id' | tail -n 1

Exit codes:
  0  it is drawn
  2  bad usage, a request of which nothing is known, a file that cannot be written, or no node that listens
  3  the host failed

With --output json, on the standard output, in one line:
  {\"request_id\":ID,\"namespace\":…,\"function\":…,\"revision\":3,\"instance\":ID,\"arrived_unix_ms\":…,
   \"cold\":true,\"status\":200,\"error\":null,
   \"steps\":[{\"name\":\"wait|rootfs|network|spawn|listen|initialize|invoke\",\"start_ms\":0.0,\"ms\":61.2}, …]}";

pub(super) const USAGE: &str = "\
Examples:
  skiff usage
  skiff usage --since 30d --function resize

`skiff usage --help` tells of exit codes and output.";

pub(super) const USAGE_LONG: &str = "\
Adds up the node's records of invocations and pulls, by function: milliseconds that are billed, and GB·s (memory
in units of 1024 MB, times seconds). Time in which one instance works on several invocations is billed once. What
was refused before the function saw it is not billed.

Examples:
  skiff usage
  skiff usage --since 30d --function resize
  skiff usage --output json | jq -s 'map(.gb_s) | add'

Exit codes:
  0  it worked
  2  bad usage, no node that listens, or one that keeps no records
  3  the host failed

With --output json, on the standard output, no sums but the records, the oldest first, one in a line:
  {\"sequence\":7,\"kind\":\"invocation\",\"platform\":\"fc\",\"namespace\":\"default\",\"function\":\"resize\",
   \"revision\":1,\"instance\":ID,\"request_id\":ID,\"retries\":0,\"asynchronous\":false,\"start_unix_ms\":…,
   \"end_unix_ms\":…,\"billed_ms\":43,\"memory_mib\":512,\"memory_peak_bytes\":…,\"cold\":false,
   \"status\":\"success\",\"http_status\":200,\"gb_s\":0.0215}
`kind` may be pull, gap (`missing` calls have no record) and damage too.";

pub(super) const DELETE: &str = "\
Examples:
  skiff delete resize

`skiff delete --help` tells of exit codes.";

pub(super) const DELETE_LONG: &str = "\
Takes no more calls for the function, and waits until its last ones have ended and its instances are gone.

Examples:
  skiff delete resize
  skiff delete resize --namespace default

Exit codes:
  0  it is gone
  2  bad usage, no such function, or no node that listens
  3  the host failed";

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
