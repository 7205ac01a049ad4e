//! What stands after the options in `--help`.

pub(super) const SKIFF: &str = "\
Examples:
  skiff doctor
  skiff run docker.io/library/my-function:1.0 --event '{\"k\":1}'

`skiff COMMAND --help` tells more of each command.";

pub(super) const SKIFF_LONG: &str = "\
Examples:
  Is this host fit?
    skiff doctor
  Answer one event as Tencent SCF would:
    skiff run --platform scf registry.example.com/team/my-function:1.0 --event '{\"k\":1}'
  Serve until Ctrl-C, and invoke from another terminal:
    skiff run oci:./image --socket /tmp/f.sock
    curl --unix-socket /tmp/f.sock http://function/path

Exit codes:
  0  it worked
  1  the function reported an error, or ended by itself while it served
  2  bad usage: an argument, a reference, credentials or a file that cannot be used
  3  the pull, the start, the time limit or the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM before there was a result

Output:
  Results go to the standard output; progress, logs and errors to the standard error.
  With --output json each is one JSON object in a line: results as each command's help shows
  them, everything else with an \"event\" (resolved, layer_cached, layer_started,
  layer_progress, layer_done, timeline, log, stopping, trace) or an \"error\" with kind, message,
  causes, faults, advice, fault and retryable.

Environment:
  SKIFF_STATE_DIR, SKIFF_RUN_DIR, SKIFF_KEEPER, SKIFF_LOG_LEVEL, SKIFF_OUTPUT, SKIFF_PLATFORM,
  SKIFF_HOSTS_DIR
      stand for the options of these names; options win.
  SKIFF_REGISTRY_USERNAME, SKIFF_REGISTRY_PASSWORD
      credentials for the registry.
  NO_COLOR
      no colours, when it is not empty.";

pub(super) const RUN: &str = "\
Examples:
  skiff run --plain-http 127.0.0.1:5000/demo/python:1 --event '{\"k\":1}'
  skiff run oci:./image --memory 512MiB --timeout 30s --env MODE=test -- serve --fast

`skiff run --help` tells of exit codes, output and environment.";

pub(super) const RUN_LONG: &str = "\
Without --event, `skiff run` starts one instance, writes where it listens (one line
`listening on unix:/PATH`, and one for --listen) to the standard output once the function can be
invoked, and serves until SIGINT or SIGTERM. Requests reach the function's server with the
platform's headers added; bodies stream both ways. A second signal ends it without waiting for
running requests. Either way the container is stopped and nothing is left behind.

With --event it makes the platform's own event call (fc: POST /invoke, scf: POST /event-invoke),
writes the answer's body to the standard output, and exits; a terminal gets control characters
escaped. Log lines of the function and the platform go to the standard error.

Examples:
  Answer one event, from a registry on this host:
    skiff run --plain-http 127.0.0.1:5000/demo/python:1 --event '{\"k\":1}'
  An event from a file, under Tencent's contract:
    skiff run --platform scf team/function:1 --event @event.json
  Serve on a socket and a port, with another command:
    skiff run oci:./image:latest --socket /tmp/f.sock --listen 8080 -- python3 app.py

Exit codes:
  0  the event was answered; or served until a signal
  1  the function reported an error, or ended by itself while it served
  2  bad usage: an argument, a reference, credentials or a file that cannot be used
  3  the pull, the start, the time limit or the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM before it served or answered

With --output json, on the standard output:
  {\"event\":\"listening\",\"address\":\"unix:/PATH\",\"instance\":ID}  one for each address
  {\"event\":\"answer\",\"result\":\"success|function_error|platform_error\",\"error\":TEXT|null,
   \"request_id\":ID,\"status\":200,\"headers\":[[NAME,VALUE],…],\"duration_ms\":1.2,
   \"body\":TEXT} (or \"body_base64\" for a body that is not UTF-8)
and on the standard error, beside the events that `skiff --help` names:
  {\"event\":\"timeline\",\"instance\":ID,\"resolve_ms\":…,\"pull_ms\":…,\"unpack_ms\":…,\"rootfs_ms\":…,
   \"network_ms\":…,\"spawn_ms\":…,\"listen_ms\":…,\"total_ms\":…}
  {\"event\":\"log\",\"instance\":ID,\"stream\":\"stdout|stderr|platform\",\"unix_ms\":…,\"line\":TEXT}

Environment:
  SKIFF_REGISTRY_USERNAME, SKIFF_REGISTRY_PASSWORD
      credentials for the registry, after the options for credentials and before Docker's own.
  SKIFF_CREDENTIALS_TOKEN
      token for the service of --credentials-url.
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
      proxies on the way to registries (lower case too); never for this host's loopback.
  SKIFF_FUNCTION_ACCESS_KEY_ID, SKIFF_FUNCTION_ACCESS_KEY_SECRET, SKIFF_FUNCTION_SECURITY_TOKEN
      temporary credentials of the role that the function runs as; it gets them as the platform
      gives them.
  SKIFF_PLATFORM, and those that `skiff --help` names.";

pub(super) const PULL: &str = "\
Examples:
  skiff pull registry.example.com/team/my-function:1.0
  skiff pull --plain-http 127.0.0.1:5000/demo/python:1

`skiff pull --help` tells of exit codes, output and environment.";

pub(super) const PULL_LONG: &str = "\
Writes one line with the digest, the number of layers and their size to the standard output.

Examples:
  skiff pull registry.example.com/team/my-function:1.0
  skiff pull --plain-http 127.0.0.1:5000/demo/python:1
  SKIFF_REGISTRY_USERNAME=me SKIFF_REGISTRY_PASSWORD=… skiff pull registry.example.com/a/b@sha256:…

Exit codes:
  0  the image is in the store
  2  bad usage: an argument, a reference or credentials that cannot be used
  3  the registry, the image or the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM

With --output json, on the standard output:
  {\"name\":REFERENCE,\"digest\":\"sha256:…\",\"layers\":3,\"packed_bytes\":…,
   \"timings\":{\"resolve_ms\":…,\"pull_ms\":…,\"unpack_ms\":…}}

Environment:
  SKIFF_REGISTRY_USERNAME, SKIFF_REGISTRY_PASSWORD
      credentials for the registry, after the options for credentials and before Docker's own.
  SKIFF_CREDENTIALS_TOKEN
      token for the service of --credentials-url.
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
      proxies on the way to registries (lower case too); never for this host's loopback.";

pub(super) const DOCTOR: &str = "\
Examples:
  sudo skiff doctor
  skiff doctor --output json

`skiff doctor --help` tells of exit codes and output.";

pub(super) const DOCTOR_LONG: &str = "\
One line for each thing that Skiff must have (`fail` where it is missing) or had better have
(`warn`), with what to do about it. Changes nothing. Sees more as root.

Examples:
  sudo skiff doctor
  skiff doctor --state-dir /mnt/big --output json

Exit codes:
  0  nothing failed
  2  bad usage
  3  something failed: skiff cannot run here yet

With --output json, on the standard output:
  {\"ok\":true,\"checks\":[{\"name\":\"root\",\"status\":\"ok|warn|fail\",\"found\":TEXT,\"advice\":TEXT|null},…]}";

pub(super) const COMPLETIONS: &str = "\
Examples:
  skiff completions bash > /etc/bash_completion.d/skiff
  skiff completions fish > ~/.config/fish/completions/skiff.fish";
