#!/bin/bash
# The main job, shown on a lab node: a share that is full grows while it is in use, whether a quota, a logical volume or
# an image bounds it, refusals say why, and a daemon that is killed finishes what it had accepted. Argument: the directory of the binaries. Stops at the first step that fails.
set -euo pipefail
bin=$(realpath "$1")
export PATH="$bin:$PATH" GROWD_ENDPOINT=unix:/run/growd/growd.sock RUST_LOG=warn,audit=off

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'DEMO FAILED: %s\n' "$*" >&2; exit 1; }
share() { printf '00000000-0000-4000-8000-%012d' "$1"; }
# Root may write past an ext4 limit; a tenant may not.
fill() { setpriv --bounding-set=-sys_resource dd if=/dev/zero of="$1" bs=1M count="$2" conv=fsync status=none; }
# Counts the jobs that have not ended; fails when there are none.
unfinished() { growctl jobs --limit 1000 -o json | grep -cE '"state": *"(QUEUED|RUNNING)"'; }
# A command that must be refused, with this reason.
refused() {
    local reason=$1 out
    shift
    if out=$("$@" 2>&1); then fail "not refused: $*"; fi
    printf '%s\n' "$out"
    [[ $out == *"$reason"* ]] || fail "$* was not refused with $reason"
}

say "A storage node with XFS and ext4 under project quotas, a volume group and an image"
mkfs.xfs -qf /dev/ubda
mkfs.ext4 -qF -O quota,project -E quotatype=prjquota /dev/ubdb
mkfs.ext4 -qF /dev/ubdd
mkdir -p /mnt/xfs /mnt/ext4 /mnt/state
mount -o prjquota /dev/ubda /mnt/xfs
mount -o prjquota /dev/ubdb /mnt/ext4
mount /dev/ubdd /mnt/state
xfs=$(share 1) ext4=$(share 2)
mkdir "/mnt/xfs/$xfs" "/mnt/ext4/$ext4"
xfs_quota -x -c "project -s -p /mnt/xfs/$xfs 1" -c "limit -p bhard=8m 1" /mnt/xfs >/dev/null
chattr -p 2 +P "/mnt/ext4/$ext4"
setquota -P 2 0 8M 0 0 /mnt/ext4
for n in $(seq 11 30); do
    mkdir "/mnt/xfs/$(share "$n")"
    xfs_quota -x -c "project -s -p /mnt/xfs/$(share "$n") $n" -c "limit -p bhard=8m $n" /mnt/xfs >/dev/null
done
vgcreate -q vg0 /dev/ubdc >/dev/null
thick=$(share 41) thin=$(share 42) image=$(share 43)
lvcreate -qq -y -L 320m -n "share-$thick" vg0
lvcreate -qq -y --type thin-pool -L 1g -n pool0 vg0
lvcreate -qq -y -V 320m --thinpool pool0 -n "thin-$thin" vg0
mkfs.xfs -q "/dev/vg0/share-$thick"
mkfs.ext4 -q "/dev/vg0/thin-$thin"
mkdir /mnt/thick /mnt/thin /mnt/image
truncate -s 320M "/mnt/xfs/$image.img"
mkfs.xfs -q "/mnt/xfs/$image.img"
mount "/dev/vg0/share-$thick" /mnt/thick
mount "/dev/vg0/thin-$thin" /mnt/thin
mount -o loop "/mnt/xfs/$image.img" /mnt/image
mkdir -p /run/growd
cat >/run/growd/growd.toml <<TOML
state_dir = "/mnt/state/growd"
[[pool]]
name = "xfs"
driver = "project-quota"
path = "/mnt/xfs/{share_id}"
[[pool]]
name = "ext4"
driver = "project-quota"
path = "/mnt/ext4/{share_id}"
[[pool]]
name = "thick"
driver = "lvm"
volume_group = "vg0"
volume = "share-{share_id}"
[[pool]]
name = "thin"
driver = "lvm"
volume_group = "vg0"
volume = "thin-{share_id}"
thin_pool = "pool0"
[[pool]]
name = "image"
driver = "image"
path = "/mnt/xfs/{share_id}.img"
TOML
growd check-config --config /run/growd/growd.toml
start() {
    growd run --config /run/growd/growd.toml &
    pid=$!
    for _ in $(seq 200); do growctl node >/dev/null 2>&1 && return; sleep 0.05; done
    fail "growd did not become ready"
}
start
growctl node
growctl pools

for kind in xfs ext4; do
    id=${!kind}
    say "$kind: a share at its limit"
    fill "/mnt/$kind/$id/a" 20 && fail "the limit of 8 MiB did not hold"
    say "$kind: growctl extend $id 32MiB --wait"
    growctl extend "$id" 32MiB --wait || fail "the extend failed"
    fill "/mnt/$kind/$id/b" 16 || fail "the share did not grow"
    echo "the same write succeeds"
    growctl share "$id"
done

for kind in thick thin image; do
    id=${!kind}
    case $kind in
        thick) what="a logical volume with XFS" ;;
        thin) what="a thin logical volume with ext4" ;;
        image) what="an image with XFS on a loop device" ;;
    esac
    say "$kind: $what, full"
    fill "/mnt/$kind/a" 400 && fail "320 MiB did not hold"
    say "$kind: growctl extend $id 512MiB --wait"
    growctl extend "$id" 512MiB --wait || fail "the extend failed"
    fill "/mnt/$kind/b" 100 || fail "the share did not grow"
    echo "100 MiB more can be written"
    df -h "/mnt/$kind"
done

say "Refusals: smaller, equal, unknown, a decimal unit"
refused SIZE_NOT_GREATER growctl extend "$xfs" 1MiB
refused SIZE_NOT_GREATER growctl extend "$xfs" 32MiB
refused SHARE_NOT_FOUND growctl extend "$(share 999)" 64MiB
refused GiB growctl extend "$xfs" 1GB

say "A slow disk: jobs queue up, a busy share is named; then SIGKILL, and every accepted job is finished all the same"
# Flushing the journal, the last step of a job, takes 6 seconds from now on.
strace -f -qq -p "$pid" -o /dev/null -e trace=fsync -e inject=fsync:delay_enter=6000000 &
strace=$!
sleep 0.5
calls=()
for n in $(seq 11 30); do
    growctl extend "$(share "$n")" 16MiB --timeout 60s -o json >"/run/growd/accepted.$n" &
    calls+=($!)
done
for call in "${calls[@]}"; do wait "$call" || fail "an extend was refused"; done
refused SHARE_BUSY growctl extend "$(share 30)" 32MiB
growctl jobs --limit 40 | awk '{ print $3 }' | sort | uniq -c
left=$(unfinished) || fail "all jobs had ended before the kill"
kill -KILL "$pid"
wait "$pid" "$strace" 2>/dev/null || true
echo "growd was killed with $left jobs unfinished"
start
growctl doctor || fail "the doctor found something"
deadline=$((SECONDS + 60))
while unfinished >/dev/null; do
    ((SECONDS < deadline)) || fail "jobs do not end"
    sleep 0.1
done
for n in $(seq 11 30); do
    job=$(sed -n 's/.*"job_id": *"\([^"]*\)".*/\1/p' "/run/growd/accepted.$n")
    growctl job "$job" -o json | grep -q '"state": *"SUCCEEDED"' || fail "job $job was accepted and did not succeed"
    limit=$(xfs_quota -x -c "quota -p -v -N -b $n" /mnt/xfs | awk '{ print $4 }')
    [[ $limit == 16384 ]] || fail "share $n was accepted and has $limit KiB"
done
growctl jobs --limit 5

say "The same over HTTP: growapi speaks the share API to tenants"
cat >/run/growd/growapi.toml <<TOML
[[node]]
name = "demo"
endpoint = "unix:/run/growd/growd.sock"
[identity]
kind = "none"
TOML
growapi check-config --config /run/growd/growapi.toml
growapi run --config /run/growd/growapi.toml &
front=$!
url=http://127.0.0.1:8786
for _ in $(seq 200); do curl -fs "$url/" >/dev/null && break; sleep 0.05; done
extend() {
    printf "curl .../%s/action -d '{\"os-extend\": {\"new_size\": %s}}'\n" "$xfs" "$1"
    curl -sS -w '\nHTTP %{http_code}\n' -H 'Content-Type: application/json' -d "{\"os-extend\": {\"new_size\": $1}}" \
        "$url/v2/demo/shares/$xfs/action" | tee /run/growd/answer
    grep -q "HTTP $2" /run/growd/answer || fail "the answer is not $2"
}
extend 2 202
deadline=$((SECONDS + 60))
until curl -fsS "$url/v2/demo/shares/$xfs" | tee /run/growd/share | grep -q '"status":"available"'; do
    ((SECONDS < deadline)) || fail "the share does not become available"
    sleep 0.1
done
grep -oE '"(id|size|status)":("[^"]*"|[0-9]+)' /run/growd/share
grep -q '"size":2,' /run/growd/share || fail "the share has not the new size"
fill "/mnt/xfs/$xfs/c" 64 || fail "the share did not grow"
extend 1 400
kill -TERM "$front"
wait "$front" || fail "growapi did not end in order"

kill -TERM "$pid"
wait "$pid" || fail "growd did not end in order"
growd store verify --config /run/growd/growd.toml
echo
echo "Shown: quotas on XFS and ext4, a logical volume with XFS, a thin one with ext4 and an image grew in use, refusals said" \
    "why, 20 accepted jobs outlived SIGKILL, and a tenant extended a share over HTTP."
