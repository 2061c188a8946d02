//! What the configuration takes, and the exact words in which it refuses the rest.

use super::*;
use proptest::prelude::*;

pub(super) const FILE: &str = "/etc/growd/growd.toml";
const ID: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
pub(super) const POOL: &str =
    "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"/srv/shares/{share_id}\"\n";

fn places(pool: &PoolConfig) -> Vec<(ShareId, PathBuf)> {
    match &pool.backend {
        Backend::ProjectQuota { shares, .. } | Backend::Btrfs { shares, .. } | Backend::Image { shares, .. } => {
            shares.clone()
        }
        Backend::Lvm(lvm) => panic!("{lvm:?}"),
    }
}

pub(super) fn refused(text: &str) -> Vec<String> {
    let message = Config::parse(text, FILE).unwrap_err().to_string();
    message.lines().map(|line| line.strip_prefix("/etc/growd/growd.toml:").unwrap().to_owned()).collect()
}

#[test]
fn has_defaults_for_all_but_the_pools() {
    let config = Config::parse(POOL, FILE).unwrap();
    let pool = PoolConfig {
        name: "home".parse().unwrap(),
        backend: Backend::ProjectQuota { path: "/srv/shares/{share_id}".parse().unwrap(), shares: Vec::new() },
        reserve: Bytes::ZERO,
        overcommit: 1.0,
    };
    let expected = Config {
        listen: "/run/growd/growd.sock".into(),
        tcp: None,
        access: Access::default(),
        state_dir: "/var/lib/growd".into(),
        max_active_jobs: 1000,
        retention_age: Duration::from_secs(90 * 86_400),
        retention_jobs: 100_000,
        metrics: None,
        log: None,
        traces: None,
        pools: vec![pool],
    };
    assert_eq!(config, expected);
}

#[test]
fn takes_every_key_and_sorts_the_shares_into_their_pools() {
    let text = format!(
        "listen = \"unix:/run/g.sock\"\nstate_dir = \"/var/g\"\nmax_active_jobs = 7\n\
         [[share]]\nid = \"{ID}\"\npool = \"b\"\npath = \"/srv/legacy\"\n\
         {POOL}reserve = \"10GiB\"\novercommit = 2\n\
         [retention]\nage = \"12h\"\njobs = 0x10\n[metrics]\nlisten = \"[::1]:80\"\n[log]\nlevel = \"warn\"\n\
         [[pool]]\nname = \"b\"\ndriver = \"project-quota\"\npath = \"/srv/b/{{share_id}}\"\novercommit = 1.5\n"
    );
    let config = Config::parse(&text, FILE).unwrap();
    assert_eq!(config.listen, Path::new("/run/g.sock"));
    assert_eq!(config.state_dir, Path::new("/var/g"));
    assert_eq!((config.max_active_jobs, config.retention_jobs), (7, 16));
    assert_eq!(config.metrics, Some("[::1]:80".parse().unwrap()));
    assert_eq!(config.log, Some(crate::logging::level("warn").unwrap()));
    assert_eq!(config.retention_age, Duration::from_secs(12 * 3600));
    let [home, other] = config.pools.as_slice() else { panic!("{config:?}") };
    assert_eq!((home.reserve, home.overcommit, places(home)), (Bytes::gib(10), 2.0, Vec::new()));
    assert_eq!(other.overcommit, 1.5);
    assert_eq!(places(other), [(ID.parse().unwrap(), PathBuf::from("/srv/legacy"))]);
}

#[test]
fn a_btrfs_pool_has_the_keys_of_a_project_quota_pool() {
    let text = format!("{POOL}overcommit = 2\n[[share]]\nid = \"{ID}\"\npool = \"home\"\npath = \"/srv/legacy\"\n");
    let config = Config::parse(&text.replace("project-quota", "btrfs"), FILE).unwrap();
    let expected = Backend::Btrfs {
        path: "/srv/shares/{share_id}".parse().unwrap(),
        shares: vec![(ID.parse().unwrap(), "/srv/legacy".into())],
    };
    assert_eq!(config.pools[0].backend, expected);
}

#[test]
fn an_image_pool_may_grow_file_systems_as_far_as_it_likes() {
    let text = format!("{}overcommit = 2\nallow_any_growth = true\n", POOL.replace("project-quota", "image"));
    let expected =
        Backend::Image { path: "/srv/shares/{share_id}".parse().unwrap(), shares: Vec::new(), allow_any_growth: true };
    assert_eq!(Config::parse(&text, FILE).unwrap().pools[0].backend, expected);
}

#[test]
fn the_packaged_example_is_valid() {
    let config = Config::parse(include_str!("../../systemd/growd.toml"), "growd.toml").unwrap();
    // The package makes the group and gives it the socket.
    let bare = format!("{POOL}reserve = \"10GiB\"\n[access]\noperators = [\"group:growd\"]\n");
    assert_eq!(config, Config::parse(&bare, FILE).unwrap(), "the example shows the defaults");
}

#[test]
fn the_packaged_example_shows_every_key_with_its_default() {
    let example = include_str!("../../systemd/growd.toml");
    let lines = example.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
    let shown: String = lines.filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n")).collect();
    let taken = if cfg!(feature = "otlp") { shown.clone() } else { shown.replace("[traces]\nendpoint", "#") };
    let mut config = Config::parse(&taken, "growd.toml").unwrap();
    // The example of another kind of pool is all in comments, and so are the shares.
    config.pools.truncate(1);
    // And so are the listeners that are off by default.
    assert!(config.tcp.take().is_some() && config.metrics.take().is_some());
    assert!(config.log.take().is_some() && config.traces.take().is_some() == cfg!(feature = "otlp"));
    match &mut config.pools[0].backend {
        Backend::ProjectQuota { shares, .. } => shares.clear(),
        other => panic!("{other:?}"),
    }
    assert_eq!(config, Config::parse(example, "growd.toml").unwrap());
    let table = DeTable::parse(&shown).unwrap().into_inner();
    let all = |key: &str| {
        let tables = table[key].get_ref().as_array().unwrap();
        tables.iter().map(|table| table.get_ref().as_table().unwrap()).collect::<Vec<_>>()
    };
    for (table, tables) in [
        (Table::Top, vec![&table]),
        (Table::Tcp, vec![table["tcp"].get_ref().as_table().unwrap()]),
        (Table::Access, vec![table["access"].get_ref().as_table().unwrap()]),
        (Table::Retention, vec![table["retention"].get_ref().as_table().unwrap()]),
        (Table::Log, vec![table["log"].get_ref().as_table().unwrap()]),
        (Table::Traces, vec![table["traces"].get_ref().as_table().unwrap()]),
        (Table::Pool, all("pool")),
        (Table::Share, all("share")),
    ] {
        for key in table.keys() {
            assert!(tables.iter().any(|table| table.contains_key(*key)), "{table}: {key}");
        }
    }
}

#[test]
fn a_slip_gets_a_hint() {
    let text = format!("# One\n# pool.\n\n{POOL}\n\n\n\n\n\nresrve = \"10GiB\"\n");
    assert_eq!(
        Config::parse(&text, FILE).unwrap_err().to_string(),
        "/etc/growd/growd.toml:14:1: unknown key \"resrve\" in [[pool]]; did you mean \"reserve\"?"
    );
    for (text, problems) in [
        (
            format!("{POOL}  colour = 1\n"),
            vec![
                "5:3: unknown key \"colour\" in [[pool]]; the keys here are name, driver, path, volume_group, volume, thin_pool, \
             max_data_percent, max_metadata_percent, reserve, overcommit, allow_any_growth",
            ],
        ),
        (
            format!("lisen = 1\n{POOL}[retention]\nages = 2\n"),
            vec![
                "1:1: unknown key \"lisen\" in the file; did you mean \"listen\"?",
                "7:1: unknown key \"ages\" in [retention]; did you mean \"age\"?",
            ],
        ),
        (
            format!("{POOL}[[share]]\nid = \"{ID}\"\npool = \"hme\"\npath = \"/srv/a\"\n"),
            vec!["7:8: pool: \"hme\" is not defined; did you mean \"home\"?"],
        ),
        (
            POOL.replace("project-quota", "project_quota"),
            vec!["3:10: driver: \"project_quota\" is not a driver; did you mean \"project-quota\"?"],
        ),
        (
            POOL.replace("project-quota", "zfs"),
            vec!["3:10: driver: \"zfs\" is not a driver; drivers are project-quota, lvm, image, btrfs"],
        ),
    ] {
        assert_eq!(refused(&text), problems, "{text}");
    }
}

#[test]
fn a_key_below_the_tables_is_told_where_it_belongs() {
    assert_eq!(
        refused(&format!("{POOL}state_dir = \"/data\"\n")),
        ["5:1: unknown key \"state_dir\" in [[pool]]; it is a key of the file: write it above the first table"]
    );
}

#[test]
fn wrong_values_are_refused_with_their_place() {
    for (top, problem) in [
        ("listen = 5", "1:10: listen: expected a string, found integer"),
        (
            "listen = \"tcp:1\"",
            "1:10: listen: \"tcp:1\" is not unix: and an absolute path, such as unix:/run/growd/growd.sock",
        ),
        (
            "listen = \"unix:a\"",
            "1:10: listen: \"unix:a\" is not unix: and an absolute path, such as unix:/run/growd/growd.sock",
        ),
        ("listen = \"unix:/../a\"", "1:10: listen: \"/../a\" must not contain \"..\""),
        ("state_dir = \"a\"", "1:13: state_dir: \"a\" is not absolute: it must start with \"/\""),
        ("max_active_jobs = 0", "1:19: max_active_jobs: must be above zero"),
        ("max_active_jobs = -1", "1:19: max_active_jobs: must be above zero"),
        ("max_active_jobs = 1.5", "1:19: max_active_jobs: expected a whole number, found float"),
        (
            "max_active_jobs = 99999999999999999999",
            "1:19: max_active_jobs: 99999999999999999999 is above 18446744073709551615, the largest number here",
        ),
        ("retention = 1", "1:13: retention: expected a table, found integer"),
        ("retention.age = \"0s\"", "1:17: age: must be above zero"),
        ("retention.jobs = 0", "1:18: jobs: must be above zero"),
        (
            "retention.age = \"90\"",
            "1:17: age: \"90\" is not a duration such as 90d or 12h: \
             time unit needed, for example 90sec or 90ms",
        ),
        ("share = 1", "1:9: share: expected tables in double brackets, found integer"),
        ("[share]", "1:1: share: expected tables in double brackets, found table"),
        ("share = [1]", "1:10: share: expected a table, found integer"),
    ] {
        assert_eq!(refused(&format!("{top}\n{POOL}")), [problem], "{top}");
    }
    let long = format!("listen = \"unix:/{}\"\n{POOL}", "a".repeat(107));
    assert!(refused(&long)[0].ends_with("is longer than the 107 bytes that the path of a socket may have"));
    for (line, problem) in [
        ("reserve = 10", "5:11: reserve: expected a string, found integer"),
        (
            "reserve = \"10GB\"",
            "5:11: reserve: \"10GB\" uses a decimal unit: sizes are binary here, write \"10GiB\" instead",
        ),
        ("overcommit = 0.05", "5:14: overcommit: 0.05 is not between 0.1 and 1000"),
        ("overcommit = 1001", "5:14: overcommit: 1001 is not between 0.1 and 1000"),
        ("overcommit = nan", "5:14: overcommit: NaN is not between 0.1 and 1000"),
        ("overcommit = inf", "5:14: overcommit: inf is not between 0.1 and 1000"),
        ("overcommit = \"1\"", "5:14: overcommit: expected a number, found string"),
    ] {
        assert_eq!(refused(&format!("{POOL}{line}\n")), [problem], "{line}");
    }
    assert_eq!(
        refused(&POOL.replace("{share_id}", "all")),
        ["4:8: path: \"/srv/shares/all\" does not say where the share's id goes: it needs {share_id} once"]
    );
}

#[test]
fn missing_keys_are_all_named() {
    assert_eq!(
        refused("\n[[pool]]\n\n[[share]]\nid = \"x\"\n"),
        [
            "2:1: [[pool]] has no \"name\"",
            "2:1: [[pool]] has no \"driver\"",
            "4:1: [[share]] has no \"pool\"",
            "5:6: id: \"x\" is not a UUID",
        ]
    );
    // What else a pool and a share need follows from the driver.
    for (driver, share, missing) in [
        ("project-quota", "volume = \"x\"", vec!["1:1: [[pool]] has no \"path\""]),
        ("lvm", "path = \"/x\"", vec!["1:1: [[pool]] has no \"volume_group\"", "1:1: [[pool]] has no \"volume\""]),
    ] {
        let text =
            format!("[[pool]]\nname = \"a\"\ndriver = \"{driver}\"\n[[share]]\nid = \"{ID}\"\npool = \"a\"\n{share}\n");
        let (own, at) = if driver == "lvm" { ("volume", 8) } else { ("path", 10) };
        let other = if driver == "lvm" { "path" } else { "volume" };
        let mut expected: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        expected.push(format!("4:1: [[share]] has no \"{own}\""));
        expected.push(format!("7:{at}: driver {driver} has no key \"{other}\""));
        assert_eq!(refused(&text), expected);
    }
    for text in ["", "pool = []", "# nothing\n"] {
        assert_eq!(refused(text), ["1:1: no [[pool]]: there is nothing to serve"]);
    }
    assert_eq!(refused("[pool]\nname = \"a\"\n"), ["1:1: pool: expected tables in double brackets, found table"]);
}

#[test]
fn a_volume_is_one_share_whatever_pools_of_its_group_there_are() {
    let pool = |name: &str, group: &str, volume: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ndriver = \"lvm\"\nvolume_group = \"{group}\"\nvolume = \"{volume}{{share_id}}\"\n"
        )
    };
    let share = |n: usize, pool: &str, volume: &str| {
        let id = format!("7d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a{n:02}");
        format!("[[share]]\nid = \"{id}\"\npool = \"{pool}\"\nvolume = \"{volume}\"\n")
    };
    let text = [
        pool("a", "vg0", "a-"),
        pool("b", "vg0", "b-"),
        pool("c", "vg1", "a-"),
        pool("d", "vg1", "a-"),
        share(1, "a", &format!("b-{ID}")),
        share(2, "a", "legacy"),
        share(3, "b", "legacy"),
        share(4, "c", "legacy"),
        share(5, "c", &format!("b-{ID}")),
    ]
    .concat();
    assert_eq!(
        refused(&text),
        [
            "20:10: volume: a-{share_id} and a-{share_id} of line 15 can be the same volume of vg1".to_owned(),
            format!("24:10: volume: b-{ID} and b-{{share_id}} of line 10 can be the same volume of vg0"),
            "32:10: volume: legacy and legacy of line 28 can be the same volume of vg0".to_owned(),
        ]
    );
}

#[test]
fn entries_are_checked_against_each_other_and_all_is_said() {
    let pool = |name: &str, path: &str| POOL.replace("home", name).replace("/srv/shares/{share_id}", path);
    let share =
        |id: &str, pool: &str, path: &str| format!("[[share]]\nid = \"{id}\"\npool = \"{pool}\"\npath = \"{path}\"\n");
    let other = ID.replace("6d", "7d");
    let text = [
        pool("home", "/srv/shares/{share_id}"),
        pool("home", "/srv/shares/{share_id}/data"),
        pool("c", "/srv/c-{share_id}"),
        share(ID, "home", "/srv/a"),
        share(ID, "none", "/srv/a"),
        share(&other, "c", "/srv/a/b"),
        share("7d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a12", "c", "b"),
        share("7d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a13", "c", &format!("/srv/shares/{ID}")),
    ]
    .concat();
    let shares_met = format!(
        "32:8: path: /srv/shares/{ID} can be a place that the pool of line 4 finds by itself, \
         or inside or around one: /srv/shares/{{share_id}}"
    );
    assert_eq!(
        refused(&text),
        [
            "6:8: pool \"home\" is already defined in line 2",
            "8:8: path: /srv/shares/{share_id}/data and /srv/shares/{share_id} of line 4 can be the same place, \
             or one inside the other",
            "18:6: share 6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11 is already defined in line 14",
            "19:8: pool: \"none\" is not defined; the pools are home, c",
            "20:8: path: /srv/a is already the path of a share in line 16",
            "24:8: path: /srv/a/b and /srv/a of line 16 are one inside the other",
            "28:8: path: \"b\" is not absolute: it must start with \"/\"",
            &shares_met,
        ]
    );
}

#[test]
fn broken_toml_and_unreadable_files_are_located() {
    let problems = refused(&format!("{POOL}reserve = \"ü\" x\n"));
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("5:15: "), "{problems:?}");
    let error = Config::load(Path::new("/nonexistent/growd.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nonexistent/growd.toml");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("growd.toml");
    fs::write(&file, POOL).unwrap();
    assert_eq!(Config::load(&file).unwrap(), Config::parse(POOL, FILE).unwrap());
}

#[test]
fn tells_which_directories_are_missing() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().display();
    fs::write(directory.path().join("file"), "").unwrap();
    let text = format!("{POOL}[[share]]\nid = \"{ID}\"\npool = \"home\"\npath = \"{here}/file\"\n")
        .replace("/srv/shares", &format!("{here}/none"));
    assert_eq!(
        Config::parse(&text, FILE).unwrap().pools[0].missing_directories(),
        [format!("{here}/none does not exist: is its file system mounted?"), format!("{here}/file is not a directory"),]
    );
    let there = POOL.replace("/srv/shares", &here.to_string());
    assert!(Config::parse(&there, FILE).unwrap().pools[0].missing_directories().is_empty());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = Config::parse(&text, FILE).map_err(|error| error.to_string());
    }

    #[test]
    fn no_value_makes_it_panic(
        key in "(listen|state_dir|max_active_jobs|retention|age|pool|share|name|path|reserve|overcommit|id)",
        value in "(\"[a-zA-Zü0-9:/{}.]{0,20}\"|-?[0-9]{1,25}(\\.[0-9]{1,3})?|nan|-inf|0xff|\\[\\]|\\{\\}|1979-05-27)",
        place in 0..4,
    ) {
        let header = ["", "[retention]\n", "[[pool]]\n", "[[share]]\n"][place as usize];
        let text = format!("{header}{key} = {value}\n");
        let error = Config::parse(&text, FILE).map_err(|error| error.to_string());
        prop_assert!(error.err().is_none_or(|text| text.lines().all(|line| line.starts_with(FILE))));
    }
}
