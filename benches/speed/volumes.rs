//! Extends of logical volumes by growd against `lvextend`, with and without its step for the file system, and against
//! Manila's own driver, in one volume group.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{DiagnoseRequest, ListSharesRequest};
use tokio::runtime::Runtime;

use crate::growd::{Growd, extend, share_id};
use crate::lab_node::size_by_tool::size_by_tool;
use crate::lab_node::{Disk, Filesystem, Kind, lab};
use crate::results::{Results, Row, Series, Spread, Target, milliseconds, rounds};
use crate::venv;

const ROUNDS: usize = 11;
/// The group's default extent, by which each extend grows a volume.
const EXTENT: u64 = 4 << 20;
const FIRST_SIZE: u64 = 512 << 20;
/// Manila counts in these, and so do those that are compared with it.
const GIB: u64 = 1 << 30;
/// Volumes of one extent in the group besides those that are extended.
const MANY: usize = 1000;
/// Volumes that are extended.
const OWN: usize = 8;
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
    /// `LVMShareDriver.extend_share`.
    Manila,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Growd => "growd",
            Self::Resizing => "lvextend -r",
            Self::Plain => "lvextend",
            Self::Manila => "Manila's driver",
        }
    }
}

/// A mounted volume that one way grows.
struct Contender {
    way: Way,
    share: String,
    first_size: u64,
    size: u64,
    growth: u64,
    filesystem: Filesystem,
    accepted: Series,
    finished: Series,
}

/// Contenders that are compared with each other, growd first, and how they did before there were other volumes.
struct Comparison {
    name: &'static str,
    contenders: Vec<Contender>,
    ratios: Vec<Spread>,
}

/// What grows volumes besides the commands.
struct Growers<'a> {
    runtime: &'a Runtime,
    growd: &'a Growd,
    manila: &'a mut Manila,
}

pub fn run(results: &mut Results) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let disks = ["ubda", "ubdb"].map(Disk::take);
    let [for_xfs, for_ext4] = disks.each_ref().map(|disk| disk.path().display().to_string());
    // Steps of a GiB need more than a disk of the lab has: a file with holes as large as they say.
    let holes = Filesystem::ext4_without_quota_feature("ubdc");
    let large = lab::run(
        "/bin/sh",
        &["-ec", "truncate -s 64G $0/disk && losetup -f --show $0/disk", &holes.path().display().to_string()],
    );
    let large = large.trim();
    lab::run("vgcreate", &["-q", "-y", "--metadatasize", "8m", "vg0", &for_xfs, &for_ext4, large]);
    let commands = [Way::Growd, Way::Resizing, Way::Plain];
    let make = |name, kind, ways: &[Way], disk: &str, first: usize, sizes| Comparison {
        name,
        contenders: contenders(kind, ways, disk, first, sizes),
        ratios: Vec::new(),
    };
    let small = Sizes { first: FIRST_SIZE, growth: EXTENT, gap: FIRST_SIZE };
    let gib = Sizes { first: GIB, growth: GIB, gap: 28 * GIB };
    let mut comparisons = [
        make("XFS", Kind::Xfs, &commands, &for_xfs, 1, small),
        make("ext4", Kind::Ext4, &commands, &for_ext4, 4, small),
        make("ext4, steps of 1 GiB", Kind::Ext4, &[Way::Growd, Way::Manila], large, 7, gib),
    ];
    // On a disk and not on a tmpfs, where a flush would cost nothing.
    let state = Filesystem::ext4_without_quota_feature("ubdd");
    let dir = tempfile::tempdir().unwrap();
    let start = || runtime.block_on(Growd::start(dir.path(), &state.path().join("growd"), POOL));
    let mut manila = Manila::start();

    results.heading("Extend of a logical volume");
    let header = ["path", "other volumes", "median", "slowest", "growd's first", "growd, accepted"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    let mut parts = Vec::new();
    for others in [0, MANY] {
        if others > 0 {
            make_others(large);
        }
        for comparison in &mut comparisons {
            let growd = start();
            let growers = &mut Growers { runtime: &runtime, growd: &growd, manila: &mut manila };
            let (_, cold) = comparison.contenders[0].grow(growers);
            rounds(&mut comparison.contenders, 1, |contender| _ = contender.grow(growers));
            rounds(&mut comparison.contenders, ROUNDS, |contender| contender.measure(growers));
            comparison.compare(results, others);
            table.extend(comparison.contenders.iter().map(|contender| contender.cells(comparison.name, others, cold)));
            parts.push(format!("{} with {others}: {}", comparison.name, commands_of(&runtime, &growd)));
            for contender in &mut comparison.contenders {
                contender.check();
                (contender.accepted, contender.finished) = Default::default();
            }
        }
    }
    results.table(&table);
    results.note(
        "What is measured is from the request to SUCCEEDED seen through WatchJob: space checked, volume grown, file system \
         grown and flushed, size read back, end of the job durable. growd keeps two shells of lvm open and was warmed up \
         by two extends; its first is that of a daemon that had just started. lvextend alone leaves the file system as it \
         was; lvextend -r grows it and flushes nothing. Manila's driver is measured alone, in a Python process that is \
         warm, without API, database and message queue. Processes start slower on User-mode Linux than on hardware, which \
         favours growd.",
    );
    results.note(&format!("What lvm took in growd's shells, as medians. {}.", parts.join(". ")));
    lists(results, &runtime, &start());
    drop(manila);
    drop(comparisons);
    lab::run("/bin/sh", &["-ec", &format!("vgchange -q -an vg0; vgremove -q -ff -y vg0; losetup -d {large}")]);
}

#[derive(Clone, Copy)]
struct Sizes {
    first: u64,
    growth: u64,
    /// Free space behind each volume, so that all of them grow in one segment.
    gap: u64,
}

/// A mounted volume on a disk for each way.
fn contenders(kind: Kind, ways: &[Way], disk: &str, first: usize, sizes: Sizes) -> Vec<Contender> {
    let create = |name: &str, size: u64| {
        lab::run("lvcreate", &["-q", "-y", "-W", "n", "-L", &format!("{size}b"), "-n", name, "vg0", disk]);
    };
    let make = |(index, way): (usize, &Way)| {
        let share = share_id(first + index);
        let volume = format!("share-{share}");
        create(&volume, sizes.first);
        create(&format!("gap-{share}"), sizes.gap);
        let device = format!("/dev/vg0/{volume}");
        let filesystem = match kind {
            Kind::Xfs => Filesystem::xfs(&device, ""),
            Kind::Ext4 => Filesystem::ext4_without_quota_feature(&device),
        };
        let (accepted, finished) = Default::default();
        let Sizes { first: first_size, growth, .. } = sizes;
        Contender { way: *way, share, first_size, size: first_size, growth, filesystem, accepted, finished }
    };
    let contenders: Vec<Contender> = ways.iter().enumerate().map(make).collect();
    lab::run("lvremove", &["-q", "-y", "-S", "lv_name=~^gap-", "vg0"]);
    contenders
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
    assert_eq!(volumes.lines().count(), MANY + OWN, "{volumes}");
}

impl Contender {
    fn measure(&mut self, growers: &mut Growers<'_>) {
        let (accepted, finished) = self.grow(growers);
        self.accepted.add(vec![accepted], accepted);
        self.finished.add(vec![finished], finished);
    }

    /// What one extend took until it was accepted, and until it had finished; of all but growd, twice the same.
    fn grow(&mut self, growers: &mut Growers<'_>) -> (Duration, Duration) {
        self.size += self.growth;
        let volume = format!("share-{}", self.share);
        let took = match self.way {
            Way::Growd => {
                let Growers { runtime, growd, .. } = growers;
                return runtime.block_on(async { extend(growd.connect().await, &self.share, self.size).await });
            }
            Way::Manila => growers.manila.extend(&volume, self.size / GIB),
            Way::Resizing => command(&["-r"], &volume),
            Way::Plain => command(&[], &volume),
        };
        (took, took)
    }

    fn cells(&self, kind: &str, others: usize, cold: Duration) -> Vec<String> {
        let ours = |took: Duration| if self.way == Way::Growd { milliseconds(took) } else { "-".to_owned() };
        vec![
            format!("{kind}: {}", self.way.name()),
            others.to_string(),
            milliseconds(self.finished.median()),
            milliseconds(self.finished.percentile(100.0)),
            ours(cold),
            ours(self.accepted.median()),
        ]
    }

    /// Whoever has not grown the volume, and the file system with it, has not been measured.
    fn check(&self) {
        let device = self.filesystem.device();
        let volume: u64 = lab::run("blockdev", &["--getsize64", device.to_str().unwrap()]).trim().parse().unwrap();
        assert_eq!(volume, self.size, "{}", device.display());
        let kind = match self.filesystem.kind() {
            Kind::Xfs => "xfs",
            Kind::Ext4 => "ext4",
        };
        let expected = if self.way == Way::Plain { self.first_size } else { self.size };
        let filesystem = size_by_tool(kind, device, self.filesystem.path());
        assert_eq!(filesystem, expected, "file system on {}", device.display());
    }
}

/// lvextend by an extent.
fn command(options: &[&str], volume: &str) -> Duration {
    let mut command = Command::new("lvextend");
    command.args(options).args(["-L", "+4M", &format!("vg0/{volume}")]);
    let begin = Instant::now();
    let output = command.output().unwrap();
    let took = begin.elapsed();
    assert!(output.status.success(), "{command:?}: {output:?}");
    took
}

impl Comparison {
    /// Adds what growd's time is to each of the others', and with other volumes how that has changed.
    fn compare(&mut self, results: &mut Results, others: usize) {
        let [ours, theirs @ ..] = &self.contenders[..] else { panic!("nobody to compare") };
        for contender in &self.contenders {
            let line = format!("extend of a volume, {}: {}", self.name, contender.way.name());
            results.cost(&line, OWN + others, contender.finished.median());
        }
        let mut ratios = Vec::new();
        for (index, contender) in theirs.iter().enumerate() {
            let (what, ratio, target, unchanged) = match contender.way {
                Way::Plain => {
                    ("time", ours.finished.duration_by(&contender.finished), Target::AtMost(1.05), Target::AtMost(1.1))
                }
                _ => (
                    "times faster",
                    contender.finished.duration_by(&ours.finished),
                    Target::AtLeast(5.0),
                    Target::AtLeast(0.9),
                ),
            };
            let path = format!("LVM extend, {}, {others} other volumes: {what}", self.name);
            results.row(Row {
                path,
                ours: milliseconds(ours.finished.median()),
                baseline: format!("{} {}", contender.way.name(), milliseconds(contender.finished.median())),
                ratio,
                target,
            });
            if let Some(before) = self.ratios.get(index) {
                results.row(Row {
                    path: format!("LVM extend, {}, {what}: {others} other volumes by 0", self.name),
                    ours: format!("{:.2}", ratio.median),
                    baseline: format!("{} {:.2}", contender.way.name(), before.median),
                    ratio: Spread::single(ratio.median / before.median),
                    target: unchanged,
                });
            }
            ratios.push(ratio);
        }
        self.ratios = ratios;
    }
}

/// Manila's driver in a process of its own.
struct Manila {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Manila {
    fn start() -> Self {
        let mut python = venv::program("python");
        for variable in ["PATH", "LVM_SYSTEM_DIR"] {
            python.env(variable, std::env::var_os(variable).unwrap());
        }
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/speed/manila_extend.py");
        let mut child = python.arg(script).arg("vg0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, requests, answers }
    }

    fn extend(&mut self, volume: &str, gib: u64) -> Duration {
        writeln!(self.requests, "{volume} {gib}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        Duration::from_secs_f64(answer.trim().parse().unwrap())
    }
}

impl Drop for Manila {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the last commands took that growd gave to lvm for its extends, by their names: one that reads, and one that
/// writes. The last one or two `pvck` are of Diagnose itself, which tells of them.
fn commands_of(runtime: &Runtime, growd: &Growd) -> String {
    let answer = runtime.block_on(async {
        NodeServiceClient::new(growd.connect().await).diagnose(DiagnoseRequest {}).await.unwrap().into_inner()
    });
    let median_of = |name: &&str| {
        let mut series = Series::default();
        for command in answer.commands.iter().filter(|command| command.command.split(' ').next() == Some(*name)) {
            let time = |time: &Option<prost_types::Timestamp>| SystemTime::try_from(time.unwrap()).unwrap();
            let took = time(&command.finished_at).duration_since(time(&command.started_at)).unwrap();
            series.add(vec![took], took);
        }
        (series.calls() > 0).then(|| format!("{name} {} ({} calls)", milliseconds(series.median()), series.calls()))
    };
    ["pvck", "lvextend"].iter().filter_map(median_of).collect::<Vec<_>>().join(", ")
}

/// A page of shares against the report that an administrator would ask for.
fn lists(results: &mut Results, runtime: &Runtime, growd: &Growd) {
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
    let mut contenders = [page, lvs].map(|call| (call, Series::default()));
    rounds(&mut contenders, 1, |(call, _)| call());
    rounds(&mut contenders, ROUNDS, |(call, series)| {
        let begin = Instant::now();
        call();
        series.add(vec![begin.elapsed()], begin.elapsed());
    });
    let [page, lvs] = contenders.map(|(_, series)| series);
    results.row(Row {
        path: format!("ListShares, page of {PAGE} of {} volumes: time", OWN + MANY),
        ours: milliseconds(page.median()),
        baseline: format!("lvs of the group {}", milliseconds(lvs.median())),
        ratio: page.duration_by(&lvs),
        target: Target::None,
    });
}
