# Shared by the scripts beside it; to be sourced by bash.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

step() { printf '\n== %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "${0##*/} must run as root (try: sudo $0)"
}

# Puts cargo on the PATH where rustup has installed it for root or for the user of sudo.
find_cargo() {
    local home
    for home in "${CARGO_HOME:-}" "$HOME/.cargo" "$(sudo_home)/.cargo"; do
        command -v cargo >/dev/null && break
        [ -x "$home/bin/cargo" ] && PATH="$home/bin:$PATH"
    done
    command -v cargo >/dev/null ||
        die "no Rust toolchain: install one with rustup (https://rustup.rs), 1.88 or newer"
    export PATH
}

sudo_home() {
    [ -n "${SUDO_USER:-}" ] || return 0
    getent passwd "$SUDO_USER" | cut -d: -f6
}

# Builds the test function as one static binary and prints its path.
build_function() { printf '%s/skiff-test-function\n' "$(build_static skiff-test-function)"; }

# Builds the programs of a package as static binaries and prints their directory. Their settings live in the
# environment, so that they touch neither the workspace's profiles nor the host's build scripts.
build_static() {
    local target
    target=$(uname -m)-unknown-linux-gnu
    RUSTFLAGS='-C target-feature=+crt-static' CARGO_PROFILE_RELEASE_OPT_LEVEL=s \
        CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_STRIP=symbols \
        cargo build --locked --quiet --release -p "$1" --bins --target "$target" >&2
    printf '%s\n' "${CARGO_TARGET_DIR:-$root/target}/$target/release"
}
