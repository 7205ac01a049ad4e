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
