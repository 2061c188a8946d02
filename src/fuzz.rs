//! What the fuzzer calls: one function for each door through which bytes come in that growd did not write itself, with
//! what must hold of the answer. `fuzz/` drives them with bytes that a coverage-guided search makes up (`make fuzz`), the
//! test below with the seeds of that search and with every input that once failed. No program contains this.

#![allow(clippy::expect_used, clippy::panic, reason = "a broken promise panics, which is how the fuzzer learns of it")]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};
use std::time::Duration;

use nix::sys::stat::{major, minor};
use prost::Message;
use tokio_rustls::rustls::pki_types::CertificateDer;
use uuid::Uuid;

use crate::config::{ApiConfig, Config, ConfigError};
use crate::driver::filesystem::ext4::Ext4;
use crate::driver::filesystem::geometry::Geometry;
use crate::driver::lvm::metadata::{self, Metadata};
use crate::driver::lvm::report::{self, Row};
use crate::driver::lvm::volume::{Group, Volume};
use crate::driver::path_template::{NameTemplate, PathTemplate};
use crate::model::{Bytes, Identity, Job, JobId, JobKind, ProjectLabel, Refusal, ShareId};
use crate::store::record;
use crate::sys::mountinfo;
use crate::wire::{certificate, convert, json, proto, status};

/// The two configuration files: whatever is wrong is told with its place.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match Config::parse(text, "growd.toml") {
        Ok(config) => {
            assert!(!config.pools.is_empty() && config.max_active_jobs > 0);
            for (n, pool) in config.pools.iter().enumerate() {
                assert!(config.pools[..n].iter().all(|other| other.name != pool.name), "{} twice", pool.name);
                assert!(pool.overcommit.is_finite() && pool.overcommit > 0.0);
            }
        }
        Err(error) => each_problem_has_a_place(&error, "growd.toml", text),
    }
    match ApiConfig::parse(text, "growapi.toml") {
        Ok(config) => assert!(!config.nodes.is_empty()),
        Err(error) => each_problem_has_a_place(&error, "growapi.toml", text),
    }
}

fn each_problem_has_a_place(error: &ConfigError, file: &str, text: &str) {
    let ConfigError::Invalid { problems } = error else { panic!("{error}") };
    assert!(!problems.is_empty());
    for problem in problems {
        let lines = text.matches('\n').count() + 1;
        assert!((1..=lines).contains(&problem.line) && problem.column > 0, "{problem}");
    }
    let told = error.to_string();
    assert!(told.lines().all(|line| line.starts_with(file)), "{told}");
}

/// What `lvs`, `vgs` and `pvck --dump metadata` print.
pub fn lvm_report(data: &[u8]) {
    let printed = String::from_utf8_lossy(data);
    let words = report::messages(&printed);
    assert!(words.chars().count() <= report::MOST_WORDS && !words.contains(char::is_control), "{words:?}");
    let rows = report::rows(&printed);
    let _ = Group::read(&rows);
    for row in &rows {
        let Ok(name) = row.text("lv_name") else { continue };
        volume(&rows, name);
    }
    if let Some(metadata) = metadata::dumped(&printed).and_then(|text| Metadata::read(text, "vg"))
        && let Some((volume, _)) = metadata.ordinary("home")
    {
        let group = metadata.group.expect("its volume is ordinary");
        assert!(metadata.disks().is_some() && group.free <= group.size && volume.name == "home");
    }
}

fn volume(rows: &[Row], name: &str) {
    let Ok(read) = Volume::read(rows, name) else { return };
    let volume = read.expect("a row has its name");
    assert_eq!(volume.name, name);
    for percent in [volume.data_percent, volume.metadata_percent].into_iter().flatten() {
        assert!((0.0..=100.0).contains(&percent), "{percent} per cent");
    }
    if let Some(rounding) = volume.rounding {
        let wanted = volume.size.saturating_add(Bytes::mib(100));
        let size = rounding.round_up(volume.size, wanted);
        assert!(size >= wanted && rounding.space(size.saturating_sub(volume.size)) <= Bytes::new(u64::MAX));
    }
}

/// Superblocks of ext4, and behind it the size of a volume and how much larger another one is.
pub fn superblock(data: &[u8]) {
    let Some((superblock, sizes)) = data.split_first_chunk() else { return };
    let Some(ext4) = Ext4::read(superblock) else { return };
    let geometry = Geometry::Ext4(ext4);
    let size = |at: usize| sizes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u64::from_le_bytes);
    let (volume, larger) = (Bytes::new(size(0)), Bytes::new(size(0).saturating_add(size(8))));
    let on = geometry.size_on(volume);
    assert!(on >= geometry.size() && on <= volume.max(geometry.size()), "{on} on {volume}");
    assert!(on <= geometry.size_on(larger), "less on {larger} than on {volume}");
    let _ = geometry.crossed_on(volume);
}

/// Certificates of clients: each name is short and can be logged as it is.
pub fn certificate(data: &[u8]) {
    let _ = certificate::expires(&CertificateDer::from(data));
    for identity in certificate::identities(&CertificateDer::from(data)) {
        let (Identity::Uri(name) | Identity::Dns(name) | Identity::Cn(name)) = &identity else {
            panic!("{identity} of a certificate")
        };
        assert!((1..=255).contains(&name.len()) && !name.contains(char::is_control), "{identity}");
    }
}

/// `/proc/self/mountinfo`: what is understood is what the kernel would write so, and each mount is found by its device.
pub fn mountinfo(data: &[u8]) {
    let mounts: Vec<mountinfo::Mount> = mountinfo::parse(data).collect();
    for mount in &mounts {
        let found = mountinfo::find(&mounts, mount.device, &mount.mount_point).expect("it is there");
        assert_eq!(found.device, mount.device);
        let escaped = |text: &OsStr| {
            let escape = |byte: &u8| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![*byte],
            };
            OsString::from_vec(text.as_bytes().iter().flat_map(escape).collect())
        };
        let device = format!("{}:{}", major(mount.device), minor(mount.device));
        let mut line = format!("{} {} {device} ", mount.id, mount.parent).into_bytes();
        let fields = [mount.root.as_os_str(), mount.mount_point.as_os_str(), OsStr::new("rw"), OsStr::new("-")];
        let (access, copy) = (if mount.all_read_only { "ro" } else { "rw" }, if mount.by_copy { ",sb=" } else { "" });
        let (kind, options) = (mount.filesystem.as_os_str(), OsString::from([access, copy].concat()));
        for field in fields.into_iter().chain([kind, mount.source.as_os_str(), &options]) {
            line.extend(escaped(field).as_bytes());
            line.push(b' ');
        }
        assert_eq!(mountinfo::parse(&line).collect::<Vec<_>>(), std::slice::from_ref(mount));
    }
}

/// Records of the store: the bytes as they are, and as the payload of a record whose checksum is right, since no search
/// guesses a checksum.
pub fn record(data: &[u8]) {
    let _ = record::decode_mark(data);
    read_mark(&record::seal(record::MARK, record::MARK_KEY, 7, data));
    let Some((key, value)) = data.split_at_checked(17) else { return };
    read_record(key, value);
    let Some((id, payload)) = data.split_first_chunk::<16>() else { return };
    let key = record::key(JobId::from_uuid(Uuid::from_bytes(*id)));
    for kind in JobKind::ALL {
        read_record(&key, &record::seal(record::format(kind), &key, 7, payload));
    }
}

fn read_mark(value: &[u8]) {
    let Ok((commit, mut kept_time)) = record::decode_mark(value) else { return };
    assert_eq!(record::decode_mark(&record::encode_mark(commit, &kept_time)), Ok((commit, kept_time.clone())));
    let age = Duration::from_secs(3600);
    for passed in [Duration::ZERO, age, Duration::MAX] {
        kept_time.advance(passed, kept_time.kept_for(age), age);
    }
}

fn read_record(key: &[u8], value: &[u8]) {
    let Ok((job, commit)) = record::decode(key, value) else { return };
    let again = record::encode(&job, commit);
    assert_eq!(record::decode(&record::key(job.id), &again), Ok((job.clone(), commit)));
    show(job);
}

/// A job that was read can be shown.
fn show(job: Job) {
    let line = json::to_json(&convert::job(job)).expect("a job is JSON");
    assert!(!line.contains('\n'));
}

/// Requests as they come over the wire: a first byte for the method, then the message.
pub fn proto(data: &[u8]) {
    let Some((method, message)) = data.split_first() else { return };
    match method % 4 {
        0 => {
            let Ok(message) = proto::ExtendShareRequest::decode(message) else { return };
            match convert::size_request(JobKind::Extend, &message, "fuzz".to_owned(), None) {
                Ok(request) => {
                    assert!(request.new_size > Bytes::ZERO && request.new_size <= Bytes::MAX_FILE);
                    assert_eq!(request.share.to_string(), message.share_id.to_lowercase());
                    assert_eq!(request.project.as_str(), message.project_id);
                }
                Err(refusal) => answer(refusal),
            }
        }
        1 => {
            let Ok(message) = proto::ListJobsRequest::decode(message) else { return };
            let _ = convert::share_id(&message.share_id).map_err(answer);
            let _ = convert::state_filter(message.state).map_err(answer);
            let _ = convert::page_after::<JobId>(&message.page_token, &message.share_id).map_err(answer);
            assert!((1..=1000).contains(&convert::page_size(message.page_size)));
        }
        2 => {
            let Ok(message) = proto::ListSharesRequest::decode(message) else { return };
            let filter = convert::shares_filter(&message.pool, message.project_id.as_deref());
            let _ = convert::page_after::<ShareId>(&message.page_token, &filter).map_err(answer);
            let _ = message.project_id.as_deref().map(convert::project).transpose().map_err(answer);
            assert!((1..=1000).contains(&convert::page_size(message.page_size)));
        }
        _ => {
            let Ok(message) = proto::GetJobRequest::decode(message) else { return };
            match convert::job_id(&message.job_id) {
                Ok(id) => assert_eq!(id.to_string(), message.job_id.to_lowercase()),
                Err(refusal) => answer(refusal),
            }
        }
    }
}

/// A refusal is the caller's mistake, with a short message.
fn answer(refusal: Refusal) {
    let status = status::unlogged(&refusal);
    assert_eq!(i32::from(status.code()), 3, "INVALID_ARGUMENT: {status}");
}

/// Page tokens: the filter up to the first line feed, then the token; again with the filter's sum put before it, which no
/// search would guess.
pub fn page_token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (filter, token) = text.split_once('\n').unwrap_or((text, ""));
    let whole = convert::page_token(Some(token), filter);
    for token in [token, &whole] {
        if let Ok(Some(id)) = convert::page_after::<JobId>(token, filter) {
            assert_eq!(convert::page_token(Some(id), filter), token.to_lowercase());
        }
    }
}

/// Templates of places and of names: one place for a share, one share for a place.
pub fn path_template(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let share = ShareId::from_uuid(Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef));
    if let Ok(template) = text.parse::<NameTemplate>() {
        assert_eq!(template.to_string(), text);
        assert_eq!(template.share_of(&template.name_of(share)), Some(share));
    }
    if let Ok(template) = text.parse::<PathTemplate>() {
        assert_eq!(template.to_string(), text);
        let project = "b1c5e0d2".parse::<ProjectLabel>().expect("a label");
        let path = template.path_of(&project, share);
        assert!(path.starts_with(template.directory()) && path.is_absolute());
        assert!(path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_))), "{path:?}");
        let relative = template.relative_of(share);
        let entry = relative.components().next().expect("a share has a name").as_os_str();
        assert_eq!(template.share_of(entry), Some(share));
        assert!(template.meets(&template) && template.meets_path(&path) && template.meets_path(Path::new("/")));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    type Door = fn(&[u8]);

    /// Each has a folder of seeds and a program of its own name in `fuzz/`.
    const DOORS: [(&str, Door); 9] = [
        ("certificate", super::certificate),
        ("config", super::config),
        ("lvm_report", super::lvm_report),
        ("mountinfo", super::mountinfo),
        ("page_token", super::page_token),
        ("path_template", super::path_template),
        ("proto", super::proto),
        ("record", super::record),
        ("superblock", super::superblock),
    ];

    #[test]
    fn the_seeds_and_what_once_failed() {
        let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");
        let names = |folder: &str| {
            let entries = fs::read_dir(format!("{fuzz}/{folder}")).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort_unstable();
            names
        };
        let doors = DOORS.map(|(name, _)| name.to_owned());
        assert_eq!(names("seeds"), doors);
        assert_eq!(names("fuzz_targets"), doors.map(|name| format!("{name}.rs")));
        for (name, door) in DOORS {
            let seeds = names(&format!("seeds/{name}"));
            assert!(seeds.len() > 2, "{name}");
            for seed in seeds {
                println!("{name}/{seed}");
                door(&fs::read(format!("{fuzz}/seeds/{name}/{seed}")).unwrap());
            }
        }
    }
}
