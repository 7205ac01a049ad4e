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
  layer_progress, layer_done, prepared, not_prepared, warning, timeline, log,
  stopping, trace) or an \"error\" with kind, message,
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

Between requests the function is frozen, as in the clouds, unless --no-freeze is given.

The platform's own invoke API is served too (one line `invoke API on ADDRESS` for each socket): the
vendors' SDKs call the function there, with only their endpoint changed.

With --event it makes the platform's own event call (fc: POST /invoke, scf: POST /event-invoke),
writes the answer's body to the standard output, and exits; a terminal gets control characters
escaped. Log lines of the function and the platform go to the standard error. With --job too, the
event is in the function's environment instead, and its exit code decides.

Examples:
  Answer one event, from a registry on this host:
    skiff run --plain-http 127.0.0.1:5000/demo/python:1 --event '{\"k\":1}'
  An event from a file, under Tencent's contract:
    skiff run --platform scf team/function:1 --event @event.json
  A function that calls services outside:
    skiff run oci:./image:latest --network bridge --event '{}'
  As a function URL of Tencent calls an event function, and as a timer does:
    skiff run --platform scf oci:./image:latest --http-event url --listen 8080
    skiff run --platform scf oci:./image:latest --trigger timer:nightly --event 'a message'
  A function without a server:
    skiff run --platform scf oci:./image:latest --job --event '{\"k\":1}'
  From a file, with another image:
    skiff run --file function.toml oci:./image:latest
  For the vendors' SDKs, which sign with a key of that file:
    skiff run oci:./image:latest --name demo --api-listen 8900 --api-keys ./keys
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
  {\"event\":\"log\",\"instance\":ID,\"stream\":\"stdout|stderr|platform|events|requests\",
   \"unix_ms\":…,\"line\":TEXT}

Environment:
  SKIFF_REGISTRY_USERNAME, SKIFF_REGISTRY_PASSWORD
      credentials for the registry, after the options for credentials and before Docker's own.
  SKIFF_CREDENTIALS_TOKEN
      token for the service of --credentials-url.
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
      proxies on the way to registries (lower case too); never for this host's loopback.
  SKIFF_FUNCTION_ACCESS_KEY_ID, SKIFF_FUNCTION_ACCESS_KEY_SECRET, SKIFF_FUNCTION_SECURITY_TOKEN
      temporary credentials of the role that the function runs as; it gets them as the platform
      gives them. Those of --role-file and --role-url are refreshed.
  SKIFF_PLATFORM, and those that `skiff --help` names.";

pub(super) const PULL: &str = "\
Examples:
  skiff pull registry.example.com/team/my-function:1.0
  skiff pull --plain-http 127.0.0.1:5000/demo/python:1

`skiff pull --help` tells of exit codes, output and environment.";

pub(super) const PULL_LONG: &str = "\
Writes one line with the digest, the number of layers and their size to the standard output.

With --prepare the image's command is then run once, as a function of the platform fc with its
defaults and no network, until its server listens or for 10 s, and killed. What it opened is kept;
`skiff run --accelerate` reads that ahead when the page cache is cold. This needs skiff-keeper. If
it fails, the image is in the store all the same: a warning says why, and the exit code is 0.

Examples:
  skiff pull registry.example.com/team/my-function:1.0
  skiff pull --plain-http 127.0.0.1:5000/demo/python:1
  skiff pull --platform scf registry.example.com/team/my-function:1.0
  skiff pull --prepare registry.example.com/team/my-function:1.0
  SKIFF_REGISTRY_USERNAME=me SKIFF_REGISTRY_PASSWORD=… skiff pull registry.example.com/a/b@sha256:…

Exit codes:
  0  the image is in the store
  2  bad usage: an argument, a reference or credentials that cannot be used
  3  the registry, the image or the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM

With --output json, on the standard output:
  {\"name\":REFERENCE,\"digest\":\"sha256:…\",\"layers\":3,\"packed_bytes\":…,
   \"timings\":{\"resolve_ms\":…,\"pull_ms\":…,\"unpack_ms\":…}}
and with --prepare, on the standard error, one of
  {\"event\":\"prepared\",\"files\":…,\"bytes\":…,\"listened\":true|false}
  {\"event\":\"not_prepared\",\"warning\":TEXT}

Environment:
  SKIFF_PLATFORM
      stands for --platform.
  SKIFF_REGISTRY_USERNAME, SKIFF_REGISTRY_PASSWORD
      credentials for the registry, after the options for credentials and before Docker's own.
  SKIFF_CREDENTIALS_TOKEN
      token for the service of --credentials-url.
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
      proxies on the way to registries (lower case too); never for this host's loopback.";

pub(super) const EXEC: &str = "\
Examples:
  skiff exec fc-1a2b -- ls -l /
  skiff exec -it fc-1a2b -- sh

`skiff exec --help` tells of exit codes and of what the command may do.";

pub(super) const EXEC_LONG: &str = "\
Runs a command in a running instance, in its namespaces and cgroup and with the user, groups,
capabilities, limits, system-call filter and AppArmor profile of its first process, and with the
environment that it was started with. What it uses counts as the instance's.

-i passes the standard input on; -t gives the command a terminal of the instance's own; -it is for
shells. Without a terminal, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on. When
skiff exec ends, however that comes about, the command is killed; what it has left in the background
ends with the instance.

Examples:
  What runs there?
    skiff exec fc-1a2b -- ps
  A shell as root, in the instance's directory /srv:
    skiff exec -it --user 0 --workdir /srv fc-1a2b -- sh
  Copy a file out:
    skiff exec fc-1a2b -- cat /tmp/report > report

Exit codes:
  that of the command, or 128 and the number of the signal that ended it;
  126  the command is there and cannot be executed
  127  the command is not there
  2    bad usage: no such instance, more than one, no such user or directory
  3    the host failed, or the instance ended meanwhile
  Of 2, 3, 126 and 127, those of Skiff come with an error on the standard error.";

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

pub(super) const IMAGES: &str = "\
Examples:
  skiff images
  skiff images --output json

`skiff images --help` tells of exit codes and output.";

pub(super) const IMAGES_LONG: &str = "\
One line for each name of each image, those first that were used last. An image to which no name
leads any more, for its name was pulled again and is another now, is listed as <none>. UNPACKED is
the size of the layers; SHARED is how much of it other images have too. USE tells what keeps an image
from being removed: `in use` by a running instance or a pull, or `pinned` by a deployed function;
`incomplete` is one that lacks layers and is pulled again when it is asked for.

Examples:
  skiff images
  skiff images --digests
  skiff images --output json

Exit codes:
  0  the images are listed
  2  bad usage
  3  the host failed

With --output json, on the standard output, one line for each image:
  {\"names\":[REFERENCE,…],\"digest\":\"sha256:…\",\"packed_bytes\":…,\"unpacked_bytes\":…,
   \"shared_bytes\":…,\"layers\":3,\"created\":\"2026-01-01T00:00:00Z\"|null,\"last_used_unix_ms\":…,
   \"in_use\":false,\"pinned_by\":[OWNER,…],\"complete\":true}";

pub(super) const RMI: &str = "\
Examples:
  skiff rmi registry.example.com/team/my-function:1.0
  skiff rmi 3f2a91

`skiff rmi --help` tells of exit codes and output.";

pub(super) const RMI_LONG: &str = "\
An image goes with the layers that no other image has. Of an image with several names, only the name
that is given goes; a digest removes the image with all its names. An image in use by a running
instance or a pull, or pinned by a deployed function, is refused. Each image that is given is tried;
what failed is told one by one, and the first failure decides the exit code.

Examples:
  skiff rmi registry.example.com/team/my-function:1.0
  skiff rmi registry.example.com/team/my-function@sha256:…
  skiff rmi 3f2a91 77b1c0

Exit codes:
  0  all are removed
  2  bad usage, or digits that several images begin with
  3  an image is not there or in use, or the host failed

With --output json, on the standard output, one line for each image that was removed:
  {\"digest\":\"sha256:…\",\"names\":[REFERENCE,…],\"removed\":true,\"layers\":[DIFFID,…],\"freed_bytes\":…}
`removed` is false where only a name went.";

pub(super) const GC: &str = "\
Examples:
  skiff gc --older-than 7d
  skiff gc --max-size 20GiB --dry-run

`skiff gc --help` tells of exit codes and output.";

pub(super) const GC_LONG: &str = "\
Without options it removes what no name leads to: images listed as <none>, layers and manifests of
no image, and what crashes left. What a running instance or a pull uses, what a deployed function
pins, and layers that are being fetched always stay. Others may pull and start meanwhile.

Examples:
  skiff gc
  skiff gc --older-than 7d
  skiff gc --max-size 20GiB --dry-run
  skiff gc --all

Exit codes:
  0  it is done, also if there was nothing to remove
  2  bad usage
  3  the host failed

With --output json, on the standard output:
  {\"dry_run\":false,\"images\":[{\"digest\":\"sha256:…\",\"names\":[REFERENCE,…]},…],\"layers\":[DIFFID,…],
   \"blobs\":2,\"leases\":0,\"leftovers\":0,\"freed_bytes\":…}";

pub(super) const IMAGE: &str = "\
Examples:
  skiff image ls
  skiff image import docker-archive:saved.tar my/function:1

`skiff image COMMAND --help` tells more of each command.

Exit codes:
  0  it worked
  2  bad usage
  3  the image or the host failed";

pub(super) const IMPORT: &str = "\
Examples:
  skiff image import docker-archive:saved.tar my/function:1
  skiff image import oci:./image:latest registry.example.com/team/my-function:1.0

`skiff image import --help` tells of exit codes and output.";

pub(super) const IMPORT_LONG: &str = "\
Keeps the image under NAME, as if it had been pulled from there. `skiff run NAME` asks a registry for a
tag all the same, unless --pull missing or --pull never is given. An archive is what `docker save`,
`podman save` or `skopeo copy` writes, not compressed as a whole; one of several images needs a TAG. The
name of an archive ends at its first colon.

Examples:
  docker save my/function:1 -o saved.tar
  skiff image import docker-archive:saved.tar my/function:1
  skiff run --pull never my/function:1 --event '{}'
  skiff image import oci-archive:image.tar:latest registry.example.com/team/my-function:1.0

Exit codes:
  0  the image is in the store
  2  bad usage: a source or name that cannot be used
  3  the image or the host failed
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM

With --output json, on the standard output, as of `skiff pull`:
  {\"name\":NAME,\"digest\":\"sha256:…\",\"layers\":3,\"packed_bytes\":…,
   \"timings\":{\"resolve_ms\":…,\"pull_ms\":…,\"unpack_ms\":…}}";

pub(super) const VERIFY: &str = "\
Examples:
  skiff image verify
  skiff image verify --repair registry.example.com/team/my-function:1.0

`skiff image verify --help` tells of exit codes and output.";

pub(super) const VERIFY_LONG: &str = "\
Hashes manifests, configurations and layers against their digests, and compares each file of a layer
with what its archive said: content, mode, owner, times, attributes. Reads everything; others may pull
and start meanwhile. One line for each thing that is wrong, and the sum.

With --repair what is damaged is removed, and fetched again by the next pull; what a running instance
or a pull uses stays and is told. Layers that an older version of Skiff made cannot be hashed again:
they are counted, and are no error.

Examples:
  skiff image verify
  skiff image verify registry.example.com/team/my-function:1.0
  skiff image verify --repair

Exit codes:
  0  nothing is wrong, or all that was wrong has been removed and no image lacks it
  2  bad usage
  3  something is damaged or missing, an image is not there, or the host failed

With --output json, on the standard output:
  {\"sound\":true,\"images\":2,\"layers\":5,\"documents\":4,
   \"damages\":[{\"part\":\"layer sha256:…\",\"what\":TEXT,\"removed\":false},…],
   \"incomplete\":[REFERENCE,…],\"unverifiable\":[DIFFID,…]}
and on the standard error {\"event\":\"verified\",\"part\":\"layer sha256:…\",\"done\":1,\"of\":9} for each part.";
