#!/bin/sh
# karmactl @VERSION@ in one file: this script, then a compressed folder with Python and everything karmactl needs.
# It is unpacked once, into the user's cache, and executed from there. It takes sh, tar, gzip and coreutils.
digest=@DIGEST@
lines=@LINES@

fail() { # fail WHAT FAULT NEXT
    printf 'error: %s\n  fault: %s\n  next:  %s\n' "$1" "$2" "$3" >&2
    exit 2
}

home=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
[ -n "$home" ] ||
    fail "there is no cache to unpack karmactl into: neither HOME nor XDG_CACHE_HOME is set" configuration \
        "set XDG_CACHE_HOME to a folder of yours"
cache=$home/karmactl/program
folder=$cache/$digest
program=$folder/karmactl

unpack() {
    umask 077
    mkdir -p "$cache" || fail "karmactl cannot make $cache" configuration "set XDG_CACHE_HOME to a folder of yours"
    # What an unpacking left that was killed. A day: nobody unpacks for so long.
    find "$cache" -maxdepth 1 -name '.unpacking.*' -mtime +0 -exec rm -rf {} + 2>/dev/null
    aside=$(mktemp -d "$cache/.unpacking.XXXXXX") ||
        fail "karmactl cannot write to $cache" configuration "set XDG_CACHE_HOME to a folder of yours"
    trap 'rm -rf "$aside"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    [ ! -t 2 ] || echo "karmactl: unpacking into $folder, once" >&2
    found=$(tail -n "+$lines" "$0" | sha256sum) || fail "karmactl cannot read itself from $0" configuration "call it by its path"
    [ "${found%% *}" = "$digest" ] ||
        fail "$0 is damaged: it does not end with what was built" file "get it again and compare it with SHA256SUMS"
    tail -n "+$lines" "$0" | tar -xzf - -C "$aside" ||
        fail "karmactl could not be unpacked into $cache" environment "make room there, or set XDG_CACHE_HOME to another folder"
    # Whoever was faster has unpacked the same.
    mv -T "$aside" "$folder" 2>/dev/null || [ -x "$program" ] ||
        fail "karmactl cannot move what it unpacked to $folder" configuration "set XDG_CACHE_HOME to a folder of yours"
    rm -rf "$aside"
    trap - EXIT INT TERM
}

[ -x "$program" ] || unpack
# What another user put there, or could put there, would run as this one.
for path in "$cache" "$folder" "$program"; do
    [ -O "$path" ] ||
        fail "$path belongs to somebody else" configuration "set XDG_CACHE_HOME to a folder of yours"
done
open=$(find "$cache" "$folder" "$program" -maxdepth 0 -perm /022 2>&1)
[ -z "$open" ] ||
    fail "other users may write to $open" configuration "chmod go-w what is named, or set XDG_CACHE_HOME to a folder of yours"
exec "$program" "$@"
