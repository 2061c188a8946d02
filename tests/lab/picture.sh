#!/bin/bash
# Makes the picture of the dashboard, on a lab node: growd at work under a load with some mishaps for eight minutes, a
# Prometheus that scrapes it, and draw_dashboard.py, which asks that Prometheus what Grafana would. Arguments: the directory
# of the binaries, where the picture goes, and what it says of the growd that it shows. Stops at the first step that fails.
set -euo pipefail
export PATH="$(realpath "$1"):$PATH" GROWD_ENDPOINT=unix:/run/growd/growd.sock RUST_LOG=error,audit=off
picture=$2 of=$3
here=$(dirname "$(realpath "$0")")
readonly SHARES=40 VOLUMES=6 THIN=3

fail() { printf 'PICTURE FAILED: %s\n' "$*" >&2; exit 1; }
share() { printf '00000000-0000-4000-8000-%012d' "$1"; }
volume() { share $((100 + $1)); }
thin() { share $((200 + $1)); }
# The picture marks when it was.
event() { printf '%s\t%s\n' "$(date +%s.%N)" "$*" | tee -a /run/growd/events; }
# The second of the timeline below, which begins with the load.
at() { while ((SECONDS - begun < $1)); do sleep 0.2; done; }
limit() { xfs_quota -x -c "limit -p bhard=$2 $1" /mnt/home; }
# All of the load goes on when growd refuses, is away or has no time: the dashboard is what tells of it.
extend() { growctl extend "$@" --timeout 60s >/dev/null 2>&1 || true; }

echo "Shares: $SHARES directories on XFS, $VOLUMES volumes and $THIN thin volumes with ext4"
dmsetup --noudevsync create home --table "0 $(blockdev --getsz /dev/ubda) linear /dev/ubda 0"
dmsetup mknodes
mkfs.xfs -qf /dev/mapper/home
mkfs.ext4 -qF /dev/ubdd
mkdir -p /mnt/home /mnt/state /run/growd
mount -o prjquota /dev/mapper/home /mnt/home
mount /dev/ubdd /mnt/state
for n in $(seq "$SHARES"); do
    mkdir "/mnt/home/$(share "$n")"
    xfs_quota -x -c "project -s -p /mnt/home/$(share "$n") $n" /mnt/home >/dev/null
    # The first has no limit: something for the doctor to find.
    ((n == 1)) || limit "$n" 8m
done
vgcreate -q vg0 /dev/ubdc >/dev/null
lvcreate -qq -y --type thin-pool -L 1g -n pool0 vg0
for n in $(seq "$VOLUMES"); do lvcreate -qq -y -L 100m -n "share-$(volume "$n")" vg0; done
for n in $(seq "$THIN"); do lvcreate -qq -y -V 420m --thinpool pool0 -n "thin-$(thin "$n")" vg0; done
for path in /dev/vg0/share-* /dev/vg0/thin-*; do
    mkfs.ext4 -q "$path"
    mkdir "/mnt/${path##*/}"
    mount "$path" "/mnt/${path##*/}"
done

# The argument is a pool to leave out.
configure() {
    {
        printf 'state_dir = "/mnt/state/growd"\n[metrics]\nlisten = "127.0.0.1:9420"\n'
        printf '[[pool]]\nname = "home"\ndriver = "project-quota"\npath = "/mnt/home/{share_id}"\nreserve = "256MiB"\n'
        [[ ${1-} == vols ]] ||
            printf '[[pool]]\nname = "vols"\ndriver = "lvm"\nvolume_group = "vg0"\nvolume = "share-{share_id}"\n'
        printf '[[pool]]\nname = "thin"\ndriver = "lvm"\nvolume_group = "vg0"\nvolume = "thin-{share_id}"\n'
        printf 'thin_pool = "pool0"\novercommit = 2.0\n'
    } >/run/growd/growd.toml
}
start() {
    growd run --config /run/growd/growd.toml &
    growd=$!
    for _ in $(seq 400); do growctl node >/dev/null 2>&1 && return; sleep 0.05; done
    fail "growd did not become ready"
}
configure
start

cat >/run/growd/prometheus.yml <<YAML
global: {scrape_interval: 2s}
scrape_configs:
  - job_name: growd
    static_configs:
      - {targets: ["127.0.0.1:9420"], labels: {instance: node1}}
YAML
url=http://127.0.0.1:9090
prometheus --config.file=/run/growd/prometheus.yml --storage.tsdb.path=/run/growd/tsdb --log.level=warn \
    --web.listen-address="${url#http://}" &
prometheus=$!
for _ in $(seq 600); do curl -fs "$url/-/ready" >/dev/null && break; sleep 0.1; done
curl -fsS "$url/-/ready" >/dev/null || fail "Prometheus did not become ready"

# One extend of a directory each second or so, now and then of a volume, and requests that must be refused.
load() {
    local i n
    for ((i = 0; ; i++)); do
        n=$((i % (SHARES - 1)))
        extend "$(share $((n + 2)))" "$((12 + i / (SHARES - 1) * 4))MiB"
        ((i % 3)) || extend "$(volume $((i / 3 % VOLUMES + 1)))" "$(volume_size)"
        ((i % 7)) || extend "$(thin $((i / 7 % THIN + 1)))" "$((424 + i / 7 / THIN * 4))MiB"
        ((i % 4)) || extend "$(share 2)" 8MiB
        ((i % 6)) || extend "$(share 999)" 1GiB
        ((i % 9)) || extend "$(share 3)" 1TiB
        ((i % 14)) || extend "$(share 4)" 1GiB --expect-current 1GiB
        sleep 0.6
    done
}
# What tenants write, until the thin pool is full: 4 MiB a second.
fill() {
    local i
    for ((i = 1; ; i++)); do
        at $((i * 6))
        dd if=/dev/urandom of="/mnt/thin-$(thin $((i % THIN + 1)))/$i" bs=1M count=24 conv=fsync status=none || true
    done
}
# Half a MiB more with each second, so that every extend of a volume asks for more than the one before.
volume_size() { echo "$((112 + (SECONDS - begun) / 2))MiB"; }
all_volumes() {
    local n calls=()
    for n in $(seq "$VOLUMES"); do
        extend "$(volume "$n")" "$(volume_size)" &
        calls+=($!)
    done
    wait "${calls[@]}"
}
ids() { grep -o '"job_id": *"[^"]*"' | cut -d '"' -f 4; }

begun=$SECONDS from=$(date +%s)
load & load=$!
fill & fill=$!
at 50
event "all volumes are extended at once"
all_volumes
at 90
event "while an lvm of the admin locks the volume group, the pool vols is taken out of the configuration, and put back"
flock /run/lock/lvm/V_vg0 sleep 15 & lock=$!
all_volumes
configure vols
kill -HUP "$growd"
sleep 5
configure
kill -HUP "$growd"
wait "$lock"
growctl jobs --state FAILED --limit 1 -o json | ids | grep -q . || fail "no job has failed"
at 130
event "the disk of the pool home hangs"
dmsetup --noudevsync suspend --nolockfs --noflush home
at 205
event "five jobs that wait are cancelled"
for job in $(growctl jobs --state QUEUED --limit 5 -o json | ids); do growctl cancel "$job" >/dev/null 2>&1 || true; done
growctl jobs --state CANCELLED --limit 1 -o json | ids | grep -q . || fail "no job was cancelled"
at 220
event "the disk answers again"
dmsetup --noudevsync resume home
until (($(lvs --noheadings -o data_percent vg0/pool0 | cut -d . -f 1) >= 91)); do
    ((SECONDS - begun < 295)) || fail "the thin pool is not full"
    sleep 1
done
kill "$fill"
# growd has looked for findings 300 s after its start.
at 325
event "the admin enlarges the thin pool and gives a limit to the share that had none"
lvextend -qq -y -L 1536m vg0/pool0
limit 1 8m
at 360
event "growd is killed and started again"
kill -KILL "$growd"
wait "$growd" 2>/dev/null || true
start
at 420
event "all volumes are extended at once"
all_volumes
at 480
kill "$load"
python3 "$here/draw_dashboard.py" "$url" "$from" "$(date +%s)" /run/growd/events "$of" "$picture"
kill -TERM "$growd" "$prometheus"
wait "$growd" || fail "growd did not end in order"
