# The disk with the checkout, the programs, the tests and their images; sourced by scripts/vm.
#
# In the machine everything has the path that it has on the host: tests know paths from their build.

# Copies into $vm/payload only what has changed, without debug information, and makes payload.img.
make_payload() {
    local tree=$vm/payload
    step "building"
    cargo build --locked --quiet --workspace --bins --examples
    scripts/images
    mkdir -p "$tree/nextest"
    cargo nextest list --locked --workspace --list-type binaries-only --message-format json \
        >"$tree/nextest/binaries.json"
    cargo metadata --locked --quiet --format-version 1 --filter-platform "$(rustc_host)" >"$tree/nextest/cargo.json"
    step "the machine's disk of programs and tests"
    payload_sources "$tree/checkout"
    payload_programs "$tree"
    rm -rf "$tree/target/test-images"
    cp -al "${SKIFF_TEST_IMAGES:-$target/test-images}" "$tree/target/test-images" 2>/dev/null ||
        cp -a "${SKIFF_TEST_IMAGES:-$target/test-images}" "$tree/target/test-images"
    payload_store "$tree/target/test-state"
    # A machine that runs goes on with the file that it has opened.
    rm -f "$vm/payload.new"
    mkfs.ext4 -q -L skiff-payload -E lazy_itable_init=1 -d "$tree" "$vm/payload.new" 8G 2>/dev/null
    mv "$vm/payload.new" "$vm/payload.img"
}

payload_sources() {
    rm -rf "$1"
    mkdir -p "$1"
    tar -C "$root" --exclude=./target --exclude=./.git -cf - . | tar -C "$1" -xf -
    mkdir -p "$1/target"
}

# The store that tests share (`Sandbox::with_shared_images`), with Debian's image in it: the machine would
# unpack its 250 MB for minutes, by the same code.
payload_store() {
    local image stamp images=${SKIFF_TEST_IMAGES:-$target/test-images}
    stamp=$(sha256sum "$target/debug/skiff" "$images/oci.stamp" "$root/scripts/vmachine/payload.sh" | sha256sum)
    [ "$(cat "$1.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    rm -rf "$1" "$1.stamp"
    for image in python python-user; do
        "$target/debug/skiff" pull --quiet --state-dir "$1" "oci:$images/oci:$image" >/dev/null
    done
    # What belongs to this boot of this host: fix-up layers, and the marks of layers that may not be on its
    # disk yet. The disk that is made here is whole.
    rm -rf "$1"/chains/*/* "$1"/unsettled/*
    printf '%s\n' "$stamp" >"$1.stamp"
}

# Programs and tests as they lie below the build directory; what is no longer built is left out.
payload_programs() {
    local tree=$1 file list
    list=$(mktemp)
    {
        find "$target/debug" "$target/debug/examples" -maxdepth 1 -type f -perm /111 ! -name '*-????????????????'
        jq -r '."rust-binaries"[]."binary-path"' "$tree/nextest/binaries.json"
    } >"$list"
    while read -r file; do
        put_program "$file" "$tree/target/${file#"$target"/}"
    done <"$list"
    find "$tree/target/debug" -type f | while read -r file; do
        grep -qxF "$target/${file#"$tree/target/"}" "$list" || rm -f "$file"
    done
    rm -f "$list"
    payload_release "$tree/target/release"
    put_program "$(find_nextest)" "$tree/nextest/cargo-nextest"
}

# What is measured is built for release, and there only then.
payload_release() {
    local file
    if [ "$action" != bench ]; then
        rm -rf "$1"
        return
    fi
    cargo build --locked --quiet --release --workspace --bins --example sandbox
    for file in skiff-keeper examples/sandbox; do
        put_program "$target/release/$file" "$1/$file"
    done
}

put_program() {
    [ "$2" -ot "$1" ] || return 0
    mkdir -p "${2%/*}"
    strip --strip-debug -o "$2.new" "$1"
    # Of the time of what it is made from, not of now: it may be built again meanwhile.
    touch -r "$1" "$2.new"
    mv "$2.new" "$2"
}

rustc_host() { rustc -vV | sed -n "s/^host: //p"; }

find_nextest() { command -v cargo-nextest || die "no cargo-nextest: run scripts/setup"; }

# A disk with the Debian package and an image for it, in the place of all that; sets vm_payload.
make_package_payload() {
    local tree=$vm/package package image
    package=$(scripts/package)
    step "the machine's disk with the package"
    rm -rf "$tree"
    mkdir -p "$tree/checkout/scripts" "$tree/checkout/target" "$tree/target/package"
    cp -a packaging "$tree/checkout/"
    cp -a scripts/vmachine "$tree/checkout/scripts/"
    cp "$package" "$tree/target/package/skiff.deb"
    image=$tree/target/package/image
    umoci --log=error init --layout "$image"
    umoci --log=error new --image "$image:function"
    umoci --log=error insert --image "$image:function" "$(build_function)" /function
    umoci --log=error config --image "$image:function" --config.entrypoint /function
    vm_payload=$vm/package.img
    rm -f "$vm/payload.new"
    mkfs.ext4 -q -L skiff-payload -E lazy_itable_init=1 -d "$tree" "$vm/payload.new" 1G 2>/dev/null
    mv "$vm/payload.new" "$vm_payload"
}
