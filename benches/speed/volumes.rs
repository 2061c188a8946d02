//! Extends of logical volumes by growd against `lvextend`, with and without its step for the file system, in one volume
//! group.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing benchmark panics")]

mod support;

#[path = "../tests/support/mod.rs"]
mod lab_node;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{DiagnoseRequest, ListSharesRequest};
use lab_node::{Disk, Filesystem, Kind, lab};
use support::growd::{Growd, extend};
use support::{Report, Series, milliseconds};
use tokio::runtime::Runtime;

const ROUNDS: usize = 11;
/// The group's default extent, by which each extend grows a volume.
const GROWTH: u64 = 4 << 20;
const FIRST_SIZE: u64 = 512 << 20;
/// Free extents behind each volume, so that all of them grow in one segment.
const GAP: u64 = 512 << 20;
/// Volumes of one extent in the group besides those that are extended.
const MANY: usize = 300;
const PAGE: usize = 100;

const POOL: &str =
    "[[pool]]\nname = \"volumes\"\ndriver = \"lvm\"\nvolume_group = \"vg0\"\nvolume = \"share-{share_id}\"\n";

/// One way to grow a volume.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Growd,
    /// `lvextend -r`, which grows the file system too.
    Resizing,
    /// `lvextend`, which leaves the file system as it is.
    Plain,
}

/// A mounted volume that one way grows.
struct Contender {
    way: Way,
    share: String,
    size: u64,
    filesystem: Filesystem,
    accepted: Series,
    finished: Series,
}

fn main() {
    if !support::asked_for() {
        return;
    }
    lab::require();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let disks = ["ubda", "ubdb", "ubdc"].map(Disk::take);
    let [for_xfs, for_ext4, for_others] = disks.each_ref().map(|disk| disk.path().display().to_string());
    lab::run("vgcreate", &["-q", "vg0", &for_xfs, &for_ext4, &for_others]);
    let mut of_xfs = contenders(Kind::Xfs, &for_xfs, 1);
    let mut of_ext4 = contenders(Kind::Ext4, &for_ext4, 4);
    // On a disk and not on a tmpfs, where a flush would cost nothing.
    let state = Filesystem::ext4_without_quota_feature("ubdd");
    let dir = tempfile::tempdir().unwrap();
    let start = || runtime.block_on(Growd::start(dir.path(), &state.path().join("growd"), POOL));

    let mut report = Report::new("lab_lvm", "Extend of a logical volume: growd against lvextend");
    let header = ["path", "other volumes", "median", "slowest", "faster than lvextend -r", "time by lvextend's"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut parts = Vec::new();
    for others in [0, MANY] {
        if others > 0 {
            make_others(&for_others);
        }
        for contenders in [&mut of_xfs, &mut of_ext4] {
            let growd = start();
            let kind = contenders[0].filesystem.kind();
            eprintln!("{kind:?}, {others} other volumes");
            let ours = contenders.iter_mut().find(|contender| contender.way == Way::Growd).unwrap();
            let (_, cold) = ours.grow(&runtime, &growd);
            support::rounds(contenders, 1, |contender| _ = contender.grow(&runtime, &growd));
            support::rounds(contenders, ROUNDS, |contender| contender.measure(&runtime, &growd));
            let compared = compare(contenders, others, cold);
            eprintln!("{compared:?}");
            rows.extend(compared);
            parts.push(format!("{} with {others}: {}", name(kind), commands(&runtime, &growd)));
            for contender in contenders {
                contender.check();
                (contender.accepted, contender.finished) = Default::default();
            }
        }
    }
    report.table(&rows);
    report.note(
        "\"Accepted\" is ExtendShare answered, the job durable; \"finished\" is from the request to SUCCEEDED seen through \
         WatchJob: space checked, volume grown, file system grown and flushed, size read back, end of the job durable. \
         growd keeps two shells of lvm open and was warmed up by two extends; \"first\" is the first of them, by a daemon \
         that had just started. lvextend alone leaves the file system as it was; lvextend -r grows it and flushes nothing. \
         Processes start slower on User-mode Linux than on hardware, which favours growd.",
    );
    report.note(&format!("What lvm took in growd's shells, as medians. {}.", parts.join(". ")));
    report.table(&lists(&runtime, &start()));
    report.note("Every share of the page is looked at in LVM's report and in the kernel; lvs is a process of its own.");
    report.publish();
}

/// A mounted volume on a disk for each way.
fn contenders(kind: Kind, disk: &str, first: usize) -> Vec<Contender> {
    let create = |name: &str, size: u64| {
        lab::run("lvcreate", &["-q", "-y", "-W", "n", "-L", &format!("{size}b"), "-n", name, "vg0", disk]);
    };
    let make = |(index, way)| {
        let share = share_id(first + index);
        let volume = format!("share-{share}");
        create(&volume, FIRST_SIZE);
        create(&format!("gap-{share}"), GAP);
        let device = format!("/dev/vg0/{volume}");
        let filesystem = match kind {
            Kind::Xfs => Filesystem::xfs(&device, ""),
            Kind::Ext4 => Filesystem::ext4_without_quota_feature(&device),
        };
        let (accepted, finished) = Default::default();
        Contender { way, share, size: FIRST_SIZE, filesystem, accepted, finished }
    };
    let ways = [Way::Growd, Way::Resizing, Way::Plain].into_iter().enumerate();
    let contenders: Vec<Contender> = ways.map(make).collect();
    lab::run("lvremove", &["-q", "-y", "-S", "lv_name=~^gap-", "vg0"]);
    contenders
}

fn share_id(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Small volumes without file systems, which are shares of the pool too.
fn make_others(disk: &str) {
    let create = |number| format!("lvcreate -an -Zn -Wn -l1 -n share-{} vg0 {disk}\n", share_id(1000 + number));
    let commands = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(commands.path(), (0..MANY).map(create).collect::<String>()).unwrap();
    // One process for all of them, and the devices at once.
    let input = std::fs::File::open(commands.path()).unwrap();
    let status = Command::new("lvm").stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "lvm: {status}");
    lab::run("vgchange", &["-q", "-a", "y", "vg0"]);
    let volumes = lab::run("lvs", &["--noheadings", "-S", "lv_active=active", "-o", "lv_name", "vg0"]);
    assert_eq!(volumes.lines().count(), MANY + 6, "{volumes}");
}

impl Contender {
    fn measure(&mut self, runtime: &Runtime, growd: &Growd) {
        let (accepted, finished) = self.grow(runtime, growd);
        self.accepted.add(vec![accepted], accepted);
        self.finished.add(vec![finished], finished);
    }

    /// What one extend took until it was accepted, and until it had finished; of the commands, twice the same.
    fn grow(&mut self, runtime: &Runtime, growd: &Growd) -> (Duration, Duration) {
        self.size += GROWTH;
        if self.way == Way::Growd {
            return runtime.block_on(async { extend(growd.connect().await, &self.share, self.size).await });
        }
        let volume = format!("vg0/share-{}", self.share);
        let mut command = Command::new("lvextend");
        command.args(if self.way == Way::Resizing { &["-r"][..] } else { &[] });
        command.args(["-L", "+4M", &volume]);
        let begin = Instant::now();
        let output = command.output().unwrap();
        let took = begin.elapsed();
        assert!(output.status.success(), "{command:?}: {output:?}");
        (took, took)
    }

    /// Whoever has not grown the volume, and the file system with it, has not been measured.
    fn check(&self) {
        let device = self.filesystem.device().to_str().unwrap();
        let volume: u64 = lab::run("blockdev", &["--getsize64", device]).trim().parse().unwrap();
        assert_eq!(volume, self.size, "{device}");
        let filesystem = match self.filesystem.kind() {
            Kind::Xfs => {
                let text = lab::run("xfs_info", &[device]);
                let blocks = text.lines().find(|line| line.starts_with("data ")).unwrap();
                field(blocks, "bsize=") * field(blocks, "blocks=")
            }
            Kind::Ext4 => {
                let text = lab::run("dumpe2fs", &["-h", device]);
                field(&text, "Block size:") * field(&text, "Block count:")
            }
        };
        let expected = if self.way == Way::Plain { FIRST_SIZE } else { self.size };
        assert_eq!(filesystem, expected, "file system on {device}");
    }
}

/// The number behind a name.
fn field(text: &str, name: &str) -> u64 {
    let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("{name} is not in {text}"));
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("{name} has no number in {text}"))
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Xfs => "XFS",
        Kind::Ext4 => "ext4",
    }
}

fn compare(contenders: &[Contender], others: usize, cold: Duration) -> Vec<Vec<String>> {
    let median = |way| {
        let contender = contenders.iter().find(|contender| contender.way == way).unwrap();
        contender.finished.percentile(50).as_secs_f64()
    };
    let (resizing, plain) = (median(Way::Resizing), median(Way::Plain));
    let row = |name: &str, kind, took: Duration, slowest: Option<Duration>| {
        vec![
            format!("{}: {name}", self::name(kind)),
            others.to_string(),
            milliseconds(took),
            slowest.map_or_else(|| "-".to_owned(), milliseconds),
            format!("{:.1}", resizing / took.as_secs_f64()),
            format!("{:.2}", took.as_secs_f64() / plain),
        ]
    };
    let rows = |contender: &Contender| {
        let series = |name: &str, series: &Series| {
            row(name, contender.filesystem.kind(), series.percentile(50), Some(series.percentile(100)))
        };
        match contender.way {
            Way::Growd => vec![
                row("growd, first", contender.filesystem.kind(), cold, None),
                series("growd, accepted", &contender.accepted),
                series("growd, finished", &contender.finished),
            ],
            Way::Resizing => vec![series("lvextend -r", &contender.finished)],
            Way::Plain => vec![series("lvextend", &contender.finished)],
        }
    };
    contenders.iter().flat_map(rows).collect()
}

/// What the last commands took that growd gave to lvm, by their names.
fn commands(runtime: &Runtime, growd: &Growd) -> String {
    let answer = runtime.block_on(async {
        NodeServiceClient::new(growd.connect().await).diagnose(DiagnoseRequest {}).await.unwrap().into_inner()
    });
    let median_of = |name: &str| {
        let mut series = Series::default();
        for command in answer.commands.iter().filter(|command| command.command.split(' ').next() == Some(name)) {
            let time = |time: &Option<prost_types::Timestamp>| SystemTime::try_from(time.unwrap()).unwrap();
            let took = time(&command.finished_at).duration_since(time(&command.started_at)).unwrap();
            series.add(vec![took], took);
        }
        format!("{name} {} ({} calls)", milliseconds(series.percentile(50)), series.calls())
    };
    ["lvs", "lvextend"].map(median_of).join(", ")
}

/// A page of shares against the report that an administrator would ask for.
fn lists(runtime: &Runtime, growd: &Growd) -> Vec<Vec<String>> {
    let page = || {
        let request = ListSharesRequest { page_size: u32::try_from(PAGE).unwrap(), ..Default::default() };
        let answer = runtime.block_on(async {
            ShareServiceClient::new(growd.connect().await).list_shares(request).await.unwrap().into_inner()
        });
        assert_eq!(answer.shares.len(), PAGE);
        // Those that lvextend alone has grown have a finding, as they should.
        assert!(answer.shares.iter().all(|share| share.size_bytes.is_some()));
    };
    let lvs = || drop(lab::run("lvs", &["--reportformat", "json", "--units", "b", "vg0"]));
    let (page, lvs): (&dyn Fn(), &dyn Fn()) = (&page, &lvs);
    let mut contenders = [("growd, ListShares of 100", page), ("lvs of the group", lvs)]
        .map(|(name, call)| (name, call, Series::default()));
    support::rounds(&mut contenders, 1, |(_, call, _)| call());
    support::rounds(&mut contenders, ROUNDS, |(_, call, series)| {
        let begin = Instant::now();
        call();
        series.add(vec![begin.elapsed()], begin.elapsed());
    });
    let baseline = contenders[1].2.percentile(50).as_secs_f64();
    let row = |(name, _, series): &(&str, &dyn Fn(), Series)| {
        let median = series.percentile(50);
        let ratio = format!("{:.2}", median.as_secs_f64() / baseline);
        vec![(*name).to_owned(), MANY.to_string(), milliseconds(median), ratio]
    };
    let header = ["path", "other volumes", "median", "time by lvs's"].map(str::to_owned).to_vec();
    std::iter::once(header).chain(contenders.iter().map(row)).collect()
}
