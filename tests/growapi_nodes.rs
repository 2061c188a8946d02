//! The real growapi in front of many simulated nodes: what a known place costs, lists over all of them, and nodes that are
//! down, silent or talk nonsense.

// A test that cannot set itself up has nothing to report but where it stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/front.rs"]
mod front;
#[path = "growapi/simulated.rs"]
mod simulated;

use std::time::{Duration, Instant};

use front::{Answer, Front, NOBODY, until};
use growd::wire::proto::ShareStatus;
use simulated::{BROKEN_JOB, Cluster, GIB, Mood, Servers, refusal, share};
use tonic::Code;

const NODES: usize = 50;
/// Shares of each node.
const EACH: usize = 4;

fn path(n: usize) -> String {
    format!("/v2/p/shares/{}", share(n))
}

/// Share `n` is on node `n % NODES`.
fn filled() -> Cluster {
    let cluster = Cluster::new(NODES);
    for n in 0..NODES * EACH {
        cluster.nodes[n % NODES].hold(&share(n), "home", 2 * GIB);
    }
    cluster
}

#[test]
fn a_known_place_costs_one_call_however_many_nodes_there_are() {
    let cluster = filled();
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    // Nodes that a search no longer waits for may still get its question.
    let settled = || {
        let calls = || {
            let before = cluster.calls();
            std::thread::sleep(Duration::from_secs(1));
            (before, cluster.calls())
        };
        until(calls, |(before, after)| before == after).1
    };
    let cost = |work: &dyn Fn()| {
        let before = settled();
        work();
        settled() - before
    };
    let shares = 0..NODES * EACH;
    let unknown = cost(&|| shares.clone().for_each(|n| assert_eq!(front.share(&share(n))["size"], 2)));
    assert!((shares.len()..=shares.len() * NODES).contains(&unknown), "{unknown}");
    let known = cost(&|| shares.clone().for_each(|n| assert_eq!(front.share(&share(n))["size"], 2)));
    assert_eq!(known, shares.len());
    assert_eq!(cost(&|| shares.clone().for_each(|n| front.extend(&share(n), 3).accepted())), shares.len());

    // A share that is moved is found again, by a read as by an extend, and then known.
    for (n, to) in [(0, 7), (1, 9)] {
        cluster.nodes[n].with(|state| state.shares.clear());
        cluster.nodes[to].hold(&share(n), "home", 4 * GIB);
    }
    let moved = cost(&|| assert_eq!(front.share(&share(0))["size"], 4));
    assert!((2..=NODES + 1).contains(&moved), "{moved}");
    until(|| front.has_logged("the share is on another node than before"), |is| *is);
    front.extend(&share(1), 5).accepted();
    assert_eq!(cluster.nodes[9].with(|state| state.extends.len()), EACH + 1);
    assert_eq!(cost(&|| assert_eq!(front.share(&share(0))["size"], 4)), 1);

    assert_eq!(cost(&|| drop(front.get(&path(9999)).refused(404))), NODES, "all are asked before a share is unknown");
    front.get("/v2/p/shares/x").refused(404);
}

/// Follows the links to the next pages to the end.
fn pages(front: &Front, first: &str) -> (Vec<String>, usize) {
    let (mut ids, mut next, mut pages) = (Vec::new(), Some(first.to_owned()), 0);
    while let Some(path) = next {
        let answer = front.get(&path);
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        ids.extend(body["shares"].as_array().unwrap().iter().map(|share| share["id"].as_str().unwrap().to_owned()));
        pages += 1;
        let link = body["shares_links"][0]["href"].as_str();
        next = link.map(|href| href.strip_prefix(&format!("http://{}", front.address)).unwrap().to_owned());
    }
    (ids, pages)
}

#[test]
fn lists_show_every_share_once_whatever_the_size_of_the_pages() {
    let cluster = filled();
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    let mut all: Vec<String> = (0..NODES * EACH).map(share).collect();
    let (whole, count) = pages(&front, "/v2/p/shares");
    assert_eq!(count, 1);
    let mut sorted = whole.clone();
    sorted.sort();
    all.sort();
    assert_eq!(sorted, all);
    for limit in [1, 3, 4, 7, 50, 199, 200, 201] {
        for list in ["shares", "shares/detail"] {
            let (ids, count) = pages(&front, &format!("/v2/p/{list}?limit={limit}"));
            assert_eq!((&ids, count), (&whole, whole.len().div_ceil(limit)), "{limit}");
        }
    }
    assert_eq!(pages(&front, "/v2/p/shares?offset=150").0, whole[150..]);
    assert_eq!(pages(&front, "/v2/p/shares?limit=20&offset=150").0, whole[150..]);
    assert_eq!(pages(&front, &format!("/v2/p/shares?marker={}", whole[41])).0, whole[42..]);
    assert_eq!(pages(&front, &format!("/v2/p/shares?marker={}", whole[199])).0, [""; 0]);
    for marker in [share(9999), "x".to_owned()] {
        let answer = front.get(&format!("/v2/p/shares?marker={marker}"));
        assert_eq!(answer.refused(400), format!("marker [{marker}] not found"));
    }
    front.get("/v2/p/shares?limit=-1").refused(400);

    // A page asks the nodes that it takes from, and the one that tells whether there is more: each for the shares of the
    // project's pools, and for those whose places say the project.
    let before = cluster.calls();
    assert_eq!(front.get(&format!("/v2/p/shares?limit=4&marker={}", whole[99])).json()["shares"][0]["id"], whole[100]);
    assert!(cluster.calls() - before <= 2 * 3, "{}", cluster.calls() - before);
}

#[test]
fn a_node_that_is_down_takes_only_its_own_shares_with_it() {
    let mut cluster = Cluster::new(2);
    let down = Servers::new();
    cluster.nodes.push(simulated::Simulated::default());
    down.serve(&cluster.socket(2), &cluster.nodes[2]);
    for n in 0..3 {
        cluster.nodes[n].hold(&share(n), "home", 2 * GIB);
    }
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    for n in [0, 2] {
        assert_eq!(front.share(&share(n))["size"], 2);
    }
    drop(down);
    for n in [2, 9] {
        let answer = front.get(&path(n));
        answer.refused(503);
        assert!(answer.header("retry-after").is_some());
    }
    front.extend(&share(2), 3).refused(503);
    // One known and one unknown before.
    for n in [0, 1] {
        front.extend(&share(n), 3).accepted();
    }
    let list = front.get("/v2/p/shares");
    assert_eq!((list.status, list.json()["shares"].as_array().unwrap().len()), (200, 2));
    assert!(list.header("warning").is_some_and(|text| text.contains("1 nodes")), "{list:?}");

    let back = Servers::new();
    back.serve(&cluster.socket(2), &cluster.nodes[2]);
    // A share whose node is known to be down is asked for there all the same when nobody else has it.
    assert_eq!(front.share(&share(2))["size"], 2);
    until(|| front.get(&path(9)).status, |status| *status == 404);
    until(|| front.get("/v2/p/shares").header("warning").is_some(), |missing| !missing);
    drop(back);
    cluster.servers = None;
    front.get("/v2/p/shares").refused(503);
}

#[test]
fn a_share_that_went_from_a_node_that_is_down_is_found() {
    let mut cluster = Cluster::new(2);
    let down = Servers::new();
    cluster.nodes.extend([simulated::Simulated::default(), simulated::Simulated::default()]);
    down.serve(&cluster.socket(2), &cluster.nodes[2]);
    cluster.servers.as_ref().unwrap().serve(&cluster.socket(3), &cluster.nodes[3]);
    for n in 0..3 {
        cluster.nodes[2].hold(&share(n), "home", 2 * GIB);
    }
    cluster.nodes[3].hold(&share(3), "home", 2 * GIB);
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    (0..3).for_each(|n| assert_eq!(front.share(&share(n))["size"], 2));
    drop(down);
    front.get(&path(0)).refused(503);
    // Moved to others while its node is down.
    (0..2).for_each(|n| cluster.nodes[n].hold(&share(n), "home", 3 * GIB));
    until(|| front.get(&path(0)).status, |status| *status == 200);
    assert_eq!(front.share(&share(0))["size"], 3);
    until(|| front.has_logged("the share is on another node than before"), |is| *is);
    front.extend(&share(1), 4).accepted();
    // One that was not is where it was: lists go on behind it.
    front.extend(&share(2), 3).refused(503);
    // Nor do the others hear of it with each request.
    let before = cluster.calls();
    (0..5).for_each(|_| drop(front.get(&path(2)).refused(503)));
    let others = 3;
    assert!(cluster.calls() - before < 5 * others, "{}", cluster.calls() - before);
    let list = front.get(&format!("/v2/p/shares?marker={}", share(2)));
    assert_eq!((list.status, list.json()["shares"][0]["id"].as_str()), (200, Some(share(3).as_str())), "{list:?}");
}

#[test]
fn pools_that_cannot_be_read_are_told_with_the_nodes() {
    let cluster = Cluster::new(2);
    cluster.nodes[0].hold(&share(0), "home", 2 * GIB);
    cluster.nodes[1].with(|state| state.unreadable_pools = vec!["old".to_owned(), "vols".to_owned()]);
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    let list = front.get("/v2/p/shares");
    assert_eq!(list.json()["shares"].as_array().unwrap().len(), 1);
    let text = "199 growapi \"the shares of 2 pools that cannot be read are missing\"";
    assert_eq!(list.header("warning"), Some(text));

    // Of a pool with an owner only the owner is told, once.
    cluster.nodes[1].with(|state| state.unreadable_pools = vec!["home".to_owned(), "vols".to_owned()]);
    let owner = |project: &str, pool: &str| format!("[[owner]]\nproject = \"{project}\"\npool = \"{pool}\"\n");
    let owners = owner("p", "home") + &owner("q", "vols");
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}{owners}", cluster.config()));
    let text = |count: usize| format!("199 growapi \"the shares of {count} pools that cannot be read are missing\"");
    for (query, listed, unreadable) in [("p/shares", 1, Some(1)), ("q/shares", 0, Some(1)), ("r/shares", 0, None)] {
        let list = front.get(&format!("/v2/{query}"));
        assert_eq!(list.json()["shares"].as_array().unwrap().len(), listed, "{query}");
        assert_eq!(list.header("warning").map(str::to_owned), unreadable.map(text), "{query}");
    }
}

#[test]
fn a_pool_that_is_not_told_to_its_end_is_missing_and_one_that_is_not_there_is_not() {
    let cluster = Cluster::new(2);
    (1..=3).for_each(|n| cluster.nodes[0].hold(&share(n), "home", 2 * GIB));
    let owner = "[[owner]]\nproject = \"p\"\npool = \"home\"\n";
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}{owner}", cluster.config()));
    let unknown = refusal(Code::InvalidArgument, "INVALID_REQUEST", 400, &[]);
    cluster.nodes[1].with(|state| state.refusing_lists = Some(unknown));
    cluster.nodes[0].with(|state| state.refusing_pages = true);
    let whole = front.get("/v2/p/shares");
    assert_eq!((whole.json()["shares"].as_array().unwrap().len(), whole.header("warning")), (3, None));
    let rest = front.get(&format!("/v2/p/shares?marker={}", share(1)));
    assert_eq!(rest.json()["shares"].as_array().unwrap().len(), 0);
    assert_eq!(rest.header("warning"), Some("199 growapi \"the shares of 1 pools that cannot be read are missing\""));
}

#[test]
fn the_log_has_the_node_and_the_words_that_a_tenant_does_not_hear() {
    let cluster = Cluster::new(2);
    cluster.nodes[1].hold(&share(1), "home", 2 * GIB);
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    front.extend(&share(1), 1).refused(400);
    front.extend(&share(2), 3).refused(404);
    cluster.nodes[1].with(|state| state.mood = Mood::Refusing(refusal(Code::Internal, "INTERNAL", 500, &[])));
    assert_eq!(front.extend(&share(1), 3).refused(500), "The storage node of the share has met an error.");
    let line = |reason: &str| format!("node=\"n01\" reason=\"{reason}\" problem=\"refused with {reason}\"");
    until(|| front.has_logged(&line("INTERNAL")), |is| *is);
    for reason in ["SIZE_NOT_GREATER", "SHARE_NOT_FOUND"] {
        assert!(!front.has_logged(&line(reason)), "{reason} is for the tenant");
    }
}

#[test]
fn a_share_whose_job_cannot_be_told_is_all_that_a_list_lacks() {
    let cluster = Cluster::new(1);
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    (1..=3).for_each(|n| cluster.nodes[0].hold(&share(n), "home", 2 * GIB));
    front.extend(&share(2), 3).accepted();
    cluster.nodes[0].with(|state| {
        let share = state.shares.get_mut(&share(1)).unwrap();
        share.set_status(ShareStatus::Extending);
        BROKEN_JOB.clone_into(&mut share.active_job_id);
    });
    let before = cluster.nodes[0].with(|state| state.jobs_asked);
    let available = front.get("/v2/p/shares?status=available");
    assert_eq!((&available.json()["shares"][0]["id"], available.header("warning")), (&share(3).into(), None));
    assert_eq!(cluster.nodes[0].with(|state| state.jobs_asked), before, "no job says that a share is available");
    for (list, expected) in [("shares/detail", &[2, 3][..]), ("shares/detail?status=extending", &[2])] {
        let before = cluster.nodes[0].with(|state| state.jobs_asked);
        let answer = front.get(&format!("/v2/p/{list}"));
        let body = answer.json();
        let ids = body["shares"].as_array().unwrap().iter().map(|share| share["id"].as_str().unwrap().to_owned());
        assert_eq!(ids.collect::<Vec<_>>(), expected.iter().map(|n| share(*n)).collect::<Vec<_>>(), "{list}");
        assert!(answer.header("warning").is_some_and(|text| text.contains("1 nodes")), "{answer:?}");
        // What the filter has asked for is what is shown.
        assert_eq!(cluster.nodes[0].with(|state| state.jobs_asked) - before, 2, "{list}");
    }
}

#[test]
fn a_node_that_falls_silent_while_a_list_is_made_is_waited_for_once() {
    let cluster = Cluster::new(2);
    cluster.nodes[1].hold(&share(0), "home", 2 * GIB);
    for n in 1..=100 {
        cluster.nodes[0].hold(&share(n), "home", 2 * GIB);
        cluster.nodes[0].with(|state| {
            let share = state.shares.get_mut(&share(n)).unwrap();
            share.set_status(ShareStatus::Extending);
            share.active_job_id = n.to_string();
        });
    }
    cluster.nodes[0].with(|state| state.silent_jobs = true);
    let front = Front::start(cluster.dir.path(), &format!("node_timeout = \"2s\"\n{NOBODY}{}", cluster.config()));
    // Its health tells that it is there, and so the next list asks it again.
    for query in ["", "?status=extending"] {
        until(|| front.get("/v2/p/shares").json()["shares"].as_array().unwrap().len(), |count| *count == 101);
        let begin = Instant::now();
        let list = front.get(&format!("/v2/p/shares/detail{query}"));
        let listed = list.json()["shares"].as_array().unwrap().len();
        assert_eq!((list.status, listed), (200, usize::from(query.is_empty())));
        assert!(list.header("warning").is_some_and(|text| text.contains("1 nodes")), "{list:?}");
        assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    }
}

/// As when the storage that nodes share hangs: they are there, and their lists are not.
#[test]
fn a_list_waits_for_all_slow_nodes_at_once() {
    let cluster = Cluster::new(10);
    (0..10).for_each(|n| cluster.nodes[n].hold(&share(n), "home", 2 * GIB));
    let owner = "[[owner]]\nproject = \"p\"\npool = \"home\"\n";
    let config = format!("node_timeout = \"3s\"\n{NOBODY}{}{owner}", cluster.config());
    let front = Front::start(cluster.dir.path(), &config);
    for n in [0, 2, 3, 4, 7, 9] {
        cluster.nodes[n].with(|state| state.mood = Mood::Silent);
    }
    let begin = Instant::now();
    let list = front.get("/v2/p/shares");
    let took = begin.elapsed();
    let ids: Vec<_> = list.json()["shares"].as_array().unwrap().iter().map(|share| share["id"].clone()).collect();
    assert_eq!(ids, [1, 5, 6, 8].map(share));
    assert!(list.header("warning").is_some_and(|text| text.contains("of 6 nodes")), "{list:?}");
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_silent_node_is_504_and_holds_up_nobody_else() {
    let cluster = Cluster::new(3);
    for n in 0..3 {
        cluster.nodes[n].hold(&share(n), "home", 2 * GIB);
    }
    let config = format!("node_timeout = \"3s\"\n{NOBODY}{}", cluster.config());
    let front = Front::start(cluster.dir.path(), &config);
    (0..2).for_each(|n| assert_eq!(front.share(&share(n))["size"], 2));
    cluster.nodes[1].with(|state| state.mood = Mood::Silent);
    front.get(&path(1)).refused(504);
    front.extend(&share(1), 3).refused(504);
    for n in [0, 2] {
        front.extend(&share(n), 3).accepted();
    }
    let answer = front.get(&path(9));
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    cluster.nodes[1].with(|state| state.mood = Mood::Right);
    until(|| front.get(&path(1)).status, |status| *status == 200);

    // One that takes connections and says nothing at all.
    let mute = Servers::new();
    mute.serve_bytes(&cluster.dir.path().join("mute.sock"), b"");
    let config = format!("{config}{}", front::node("mute", &cluster.dir.path().join("mute.sock")));
    let front = Front::start(cluster.dir.path(), &config);
    assert_eq!(front.share(&share(0))["size"], 2);
    let status = front.get(&path(9)).status;
    assert!([503, 504].contains(&status), "{status}");
}

#[track_caller]
fn may_be_asked_again(answer: &Answer) {
    answer.refused(503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

#[test]
fn a_node_that_can_do_nothing_with_a_share_does_not_speak_for_one_that_may_have_it() {
    let cluster = Cluster::new(1);
    let unsupported = refusal(Code::Unimplemented, "UNSUPPORTED", 501, &[]);
    cluster.nodes[0].with(|state| state.refusing_looks = Some(unsupported));
    // Before and behind the other in the order of names.
    for name in ["a", "z"] {
        let down = front::node(name, &cluster.dir.path().join("down.sock"));
        let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}{down}", cluster.config()));
        // That it is down is found out after the refusal; the next request knows it at once.
        for _ in 0..2 {
            may_be_asked_again(&front.get(&path(1)));
        }
        may_be_asked_again(&front.extend(&share(1), 3));
    }
}

#[test]
fn an_error_of_a_node_may_pass_for_an_id_that_no_node_knows_and_is_told_of_a_share_that_it_has() {
    let cluster = Cluster::new(2);
    cluster.nodes[0].hold(&share(0), "home", 2 * GIB);
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    front.share(&share(0));
    cluster.nodes[0].with(|state| state.refusing_looks = Some(refusal(Code::Internal, "INTERNAL", 500, &[])));
    let error_is_told = || {
        front.get(&path(0)).refused(500);
        may_be_asked_again(&front.get(&path(9)));
        may_be_asked_again(&front.extend(&share(9), 3));
    };
    error_is_told();
    let unsupported = refusal(Code::Unimplemented, "UNSUPPORTED", 501, &[]);
    cluster.nodes[1].with(|state| state.refusing_looks = Some(unsupported));
    error_is_told();
    cluster.nodes[0].with(|state| state.refusing_looks = None);
    front.get(&path(9)).refused(501);
}

#[test]
fn nonsense_from_a_node_is_502() {
    let cluster = Cluster::new(1);
    cluster.nodes[0].hold(&share(1), "home", 2 * GIB);
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    front.share(&share(1));
    for mood in [Mood::Wrong, Mood::Foreign] {
        cluster.nodes[0].with(|state| state.mood = mood);
        front.get(&path(1)).refused(502);
        front.extend(&share(1), 3).refused(502);
    }
    let others = Servers::new();
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        &[0xff; 64],
    ];
    for bytes in answers {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        others.serve_bytes(&socket, bytes);
        let front = Front::start(dir.path(), &format!("{NOBODY}{}", front::node("odd", &socket)));
        front.get(&path(1)).refused(502);
        front.extend(&share(1), 3).refused(502);
    }
}
