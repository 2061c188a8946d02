//! What a scrape tells of a real daemon: its counts follow what happened, promtool finds nothing to say against them, and
//! a pool that hangs holds up nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/scrape.rs"]
mod scrape;
#[path = "support/volumes.rs"]
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::{Daemon, MIB, create_shares, eventually, pool, share};
use growd::wire::proto::{GetShareRequest, JobState};
use scrape::scrape;
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, lab};
use volumes::Group;

/// Configuration of metrics on a port; the tests run beside each other.
fn metrics(port: u16) -> String {
    format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n")
}

/// Samples by name and labels, as `growd_jobs{state="QUEUED"}`.
fn samples(port: u16) -> BTreeMap<String, f64> {
    let line = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    scrape(([127, 0, 0, 1], port).into()).lines().filter(|text| !text.starts_with('#')).map(line).collect()
}

#[tokio::test]
async fn counts_follow_what_happened() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    create_shares(&fs, 3, 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let config = format!("{}{}", pool(&fs, "reserve = \"16MiB\""), metrics(9421));
    let daemon = Daemon::start(dir.path(), &config).await;
    let clients = daemon.clients().await;
    for n in 1..=2 {
        clients.extended(n, 16 * MIB).await;
    }
    clients.extend(&share(3), MIB).await.unwrap_err();
    clients.extend(&share(9), MIB).await.unwrap_err();
    clients.extend(&share(3), 1 << 60).await.unwrap_err();
    clients.extend("no share", MIB).await.unwrap_err();
    clients.shrink(&share(3), 16 * MIB).await.unwrap_err();

    // Only a look at the pool gives this one; most others are there from the first scrape on.
    let size = "growd_pool_size_bytes{driver=\"project-quota\",pool=\"home\"}";
    eventually(|| async { samples(9421).contains_key(size) }, |is| *is).await;
    let samples = samples(9421);
    let documented = documented();
    let told: BTreeSet<String> = samples.keys().map(|name| family(name)).collect();
    let unknown: Vec<_> = told.difference(&documented).collect();
    assert_eq!(unknown, [""; 0], "not in docs/metrics.md");
    let there_are = &told | &registered();
    let gone: Vec<_> = documented.difference(&there_are).collect();
    assert_eq!(gone, [""; 0], "only in docs/metrics.md");
    for (name, value) in [
        ("growd_jobs_ended_total{driver=\"project-quota\",kind=\"extend\",reason=\"\",state=\"SUCCEEDED\"}", 2.0),
        ("growd_extends_refused_total{reason=\"SIZE_NOT_GREATER\"}", 1.0),
        ("growd_extends_refused_total{reason=\"SHARE_NOT_FOUND\"}", 1.0),
        ("growd_extends_refused_total{reason=\"POOL_FULL\"}", 1.0),
        ("growd_extends_refused_total{reason=\"INVALID_SHARE_ID\"}", 1.0),
        ("growd_shrinks_refused_total{reason=\"SIZE_NOT_SMALLER\"}", 1.0),
        ("growd_job_queue_wait_seconds_count", 2.0),
        ("growd_step_duration_seconds_count{driver=\"project-quota\",step=\"set_limit\"}", 2.0),
        ("growd_step_duration_seconds_count{driver=\"project-quota\",step=\"verify\"}", 2.0),
        ("growd_jobs{state=\"QUEUED\"}", 0.0),
        ("growd_jobs{state=\"RUNNING\"}", 0.0),
        ("growd_stuck_jobs", 0.0),
        ("growd_store_jobs", 2.0),
        ("growd_store_writable", 1.0),
        ("growd_draining", 0.0),
        ("growd_pool_shares{driver=\"project-quota\",pool=\"home\"}", 3.0),
        ("growd_pool_reserve_bytes{driver=\"project-quota\",pool=\"home\"}", 16.0 * MIB as f64),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}: {samples:#?}");
    }
    // Two accepted and two ended.
    assert_eq!(samples["growd_store_commit_jobs_sum"], 4.0);
    assert!(samples[size] > 1e9);
    promtool(&["check", "metrics"], &scrape(([127, 0, 0, 1], 9421).into()));

    let followed = || async { self::samples(9421)["growd_config_last_reload_successful"] };
    assert_eq!(followed().await, 1.0);
    daemon.reload(&config.replace("reserve", "reserved"));
    eventually(followed, |followed| *followed == 0.0).await;
    daemon.reload(&config);
    eventually(followed, |followed| *followed == 1.0).await;
}

#[tokio::test]
async fn a_thin_pool_tells_how_full_it_is() {
    lab::require();
    let group = Group::on("vg", &["ubdb"]);
    group.create_thin_pool("-L 1g");
    group.create(1, "-V 320m --thinpool thin");
    let daemon = Daemon::start(group.dir(), &format!("{}{}", group.pool("thin_pool = \"thin\""), metrics(9422))).await;
    daemon.clients().await;
    eventually(
        || async { samples(9422).contains_key("growd_thin_pool_used_ratio{of=\"metadata\",pool=\"vg\"}") },
        |is| *is,
    )
    .await;
    let data = samples(9422)["growd_thin_pool_used_ratio{of=\"data\",pool=\"vg\"}"];
    assert!((0.0..0.5).contains(&data), "{data}");
}

#[tokio::test]
async fn a_scrape_waits_for_no_pool() {
    lab::require();
    let disk = MappedDisk::over("ubdc");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    create_shares(&fs, 1, 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path(), &format!("{}{}", pool(&fs, ""), metrics(9423))).await;
    let clients = daemon.clients().await;
    let hang = clients.hang(&disk).await;
    let job = clients.extend(&share(1), 32 * MIB).await.unwrap();
    eventually(|| async { samples(9423)["growd_jobs{state=\"RUNNING\"}"] }, |running| *running == 1.0).await;
    // The pool tells its figures without its disk, and is looked at every 30 s.
    let of_pool = || async {
        let (told, pool) = (samples(9423), clients.pool("home").await);
        let figures = [pool.free_bytes, pool.promised_bytes, pool.queued_bytes, pool.available_bytes];
        let name = |of| format!("growd_pool_{of}_bytes{{driver=\"project-quota\",pool=\"home\"}}");
        let told = ["free", "promised", "queued", "available"].map(|of| told.get(&name(of)).copied());
        (told, figures.map(|bytes| Some(bytes as f64).filter(|bytes| *bytes > 0.0)))
    };
    eventually(of_pool, |(told, figures)| told == figures && told.iter().all(Option::is_some)).await;
    drop(hang);
    assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    assert_eq!(samples(9423)["growd_jobs{state=\"RUNNING\"}"], 0.0);

    // What the kernel or growd has in memory would be told without the disk.
    assert!(daemon.terminate());
    fs.mount_again(PRJQUOTA);
    let hang = disk.hang();
    daemon.start_again().await;
    let mut get = tonic::Request::new(GetShareRequest { share_id: share(1) });
    get.set_timeout(Duration::from_secs(2));
    daemon.clients().await.shares.get_share(get).await.expect_err("the disk does not hang");
    let size = "growd_pool_size_bytes{driver=\"project-quota\",pool=\"home\"}";
    let told = samples(9423);
    assert_eq!((told["growd_store_jobs"], told.get(size)), (1.0, None));
    // Or the alert that findings are old would fire at each start whose first look takes its time.
    let looked_at = told["growd_findings_looked_at_timestamp_seconds"];
    assert!(looked_at > 1e9, "{looked_at}");
    drop(hang);
    eventually(|| async { samples(9423).contains_key(size) }, |is| *is).await;
}

/// A metric without what its samples' names have added.
fn family(sample: &str) -> String {
    let name = sample.split('{').next().unwrap();
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    of_histogram.unwrap_or(name).to_owned()
}

/// The metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("growd_")).map(family).collect()
}

/// Those in the table of docs/metrics.md.
fn documented() -> BTreeSet<String> {
    let rows = include_str!("../docs/metrics.md").lines().filter(|line| line.starts_with("| `growd_"));
    rows.flat_map(named).collect()
}

/// Those that growd registers, as far as their names stand there in one piece: many have no sample before something
/// has happened.
fn registered() -> BTreeSet<String> {
    &named(include_str!("../src/meters.rs")) | &named(include_str!("../src/wire/metrics.rs"))
}

#[test]
fn alert_rules_and_dashboard_are_well_formed_and_name_metrics_that_there_are() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/growd.rules.yml");
    promtool(&["check", "rules", rules], "");
    let dashboard = include_str!("../systemd/growd.dashboard.json");
    let panels = serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
    let panels = panels["panels"].as_array().unwrap();
    assert!(panels.len() > 5);
    let picture = include_str!("../docs/dashboard.svg");
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap().iter().map(|target| &target["expr"]);
        for drawn in targets.chain([&panel["title"]]).map(|text| text.as_str().unwrap()) {
            assert!(picture.contains(&format!(">{drawn}</")), "{drawn} is not in the picture: make picture");
        }
    }
    let used = &named(include_str!("../systemd/growd.rules.yml")) | &named(dashboard);
    let unknown: Vec<_> = used.difference(&documented()).cloned().collect();
    assert_eq!(unknown, [] as [String; 0]);
    assert!(used.len() > 10, "{used:?}");
    let of_growapi = include_str!("../systemd/growd.rules.yml").split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let unknown = of_growapi
        .filter(|word| word.starts_with("growapi_"))
        .find(|word| !include_str!("../src/bin/growapi/metrics.rs").contains(&format!("\"{word}\"")));
    assert_eq!(unknown, None);
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool of Debian's package prometheus");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
