//! Who may do what through the real growapi: tokens of a file and of a Keystone, roles, projects, and the order in which a
//! request is looked at.

// A test that cannot set itself up has nothing to report but where it stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/front.rs"]
mod front;
#[path = "growapi/identity_service.rs"]
mod identity_service;
#[path = "growapi/simulated.rs"]
mod simulated;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use front::{Answer, Front, JSON, until};
use identity_service::IdentityService;
use simulated::{Cluster, GIB, refusal, share};
use tonic::Code;

const OWNERS: &str =
    "[[owner]]\nproject = \"p\"\npool = \"home\"\n[[owner]]\nproject = \"q\"\npool = \"work\"\nnode = \"n01\"\n";

/// Shares 1 and 2 are p's, 3 is q's, 4 is nobody's.
fn two_nodes() -> Cluster {
    let cluster = Cluster::new(2);
    for (n, node, pool) in [(1, 0, "home"), (2, 1, "home"), (3, 1, "work"), (4, 0, "work")] {
        cluster.nodes[node].hold(&share(n), pool, 2 * GIB);
    }
    cluster
}

/// The token of a name, as long as it must be.
fn token(name: &str) -> String {
    format!("{name:x<32}")
}

fn hash(token: &str) -> (bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_growapi"))
        .arg("hash-token")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{token}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn with_token_file() -> (Cluster, Front) {
    let cluster = two_nodes();
    let mut lines = String::from("# tokens\n");
    for (name, project, role) in
        [("reader", "p", "reader"), ("member", "p", "member"), ("admin", "p", "admin"), ("other", "q", "member")]
    {
        lines += &format!("{} {project} {role} # {name}\n", hash(&token(name)).1);
    }
    let path = cluster.dir.path().join("tokens");
    std::fs::write(&path, lines).unwrap();
    let identity = format!("[identity]\nkind = \"token-file\"\ntoken_file = \"{}\"\n", path.display());
    let front = Front::start(cluster.dir.path(), &format!("{identity}{}{OWNERS}", cluster.config()));
    (cluster, front)
}

struct As<'a>(&'a Front, &'a str);

impl As<'_> {
    fn get(&self, path: &str) -> Answer {
        self.0.ask("GET", path, &[("X-Auth-Token", self.1)], &[])
    }

    fn act(&self, project: &str, share: &str, body: &str) -> Answer {
        let path = format!("/v2/{project}/shares/{share}/action");
        self.0.ask("POST", &path, &[JSON, ("X-Auth-Token", self.1)], body.as_bytes())
    }

    fn extend(&self, project: &str, share: &str, size: u64) -> Answer {
        self.act(project, share, &format!("{{\"os-extend\": {{\"new_size\": {size}}}}}"))
    }

    fn listed(&self, path: &str) -> Vec<String> {
        let body = self.get(path).json();
        body["shares"].as_array().unwrap().iter().map(|share| share["id"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn hashes_are_sha256_and_short_tokens_are_refused() {
    let known = "a8ae6e6ee929abea3afcfc5258c8ccd6f85273e0d4626d26c7279f3250f77c8e";
    assert_eq!(hash("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"), (true, known.to_owned()));
    for refused in ["", "short", &" ".repeat(40), &"\u{e4}".repeat(40)] {
        assert!(!hash(refused).0, "{refused:?}");
    }
}

#[test]
fn only_tokens_of_the_file_pass() {
    let (_cluster, front) = with_token_file();
    let path = format!("/v2/p/shares/{}", share(1));
    for wrong in ["", "member", &token("members"), &hash(&token("member")).1] {
        let answer = As(&front, wrong).get(&path);
        assert_eq!(answer.refused(401), "The request you have made requires authentication.");
        assert_eq!(answer.json()["error"]["title"], "Unauthorized");
        assert!(answer.header("www-authenticate").is_some());
    }
    front.get(&path).refused(401);
    front.ask("DELETE", &path, &[], &[]).refused(401);
    assert_eq!(As(&front, &token("member")).get(&path).status, 200);
    for open in ["/", "/v2", "/v2/", "/openapi.json"] {
        assert_eq!(front.get(open).status, 200);
    }
}

#[test]
fn roles_and_projects_bound_what_is_seen_and_done() {
    let (_cluster, front) = with_token_file();
    let tokens = ["reader", "member", "admin", "other"].map(token);
    let [reader, member, admin, other] = [0, 1, 2, 3].map(|n: usize| As(&front, &tokens[n]));
    let path = |project: &str, n| format!("/v2/{project}/shares/{}", share(n));

    assert_eq!(reader.get(&path("p", 1)).json()["share"]["project_id"], "p");
    assert_eq!(reader.extend("p", &share(1), 3).refused(403), "Access was denied to this resource.");
    assert_eq!(member.get(&path("q", 3)).refused(400), "Malformed request url");
    for hidden in [3, 4] {
        assert_eq!(member.get(&path("p", hidden)).refused(404), "The resource could not be found.");
        member.get(&format!("{}/export_locations", path("p", hidden))).refused(404);
        assert_eq!(member.extend("p", &share(hidden), 3).refused(404), "Resource could not be found.");
        member.act("p", &share(hidden), "{\"shrink\": {\"new_size\": 1}}").refused(404);
    }
    member.extend("p", &share(1), 3).accepted();
    other.extend("q", &share(3), 3).accepted();
    assert_eq!(admin.get(&path("p", 3)).json()["share"]["project_id"], "q");
    admin.extend("p", &share(4), 3).accepted();
    assert!(admin.get(&path("p", 4)).json()["share"]["project_id"].is_null());
    let listed = admin.get("/v2/p/shares/detail?all_tenants=1").json()["shares"].clone();
    let owners: Vec<_> = listed.as_array().unwrap().iter().map(|share| share["project_id"].as_str()).collect();
    assert_eq!(owners, [Some("p"), None, Some("p"), Some("q")]);

    for list in ["shares", "shares/detail"] {
        assert_eq!(member.listed(&format!("/v2/p/{list}")), [share(1), share(2)]);
        assert_eq!(member.listed(&format!("/v2/p/{list}?all_tenants=1")), [share(1), share(2)]);
        assert_eq!(other.listed(&format!("/v2/q/{list}")), [share(3)]);
        assert_eq!(admin.listed(&format!("/v2/p/{list}?all_tenants=1")), [1, 4, 2, 3].map(share));
        assert_eq!(admin.listed(&format!("/v2/p/{list}?all_tenants=1&project_id=q")), [share(3)]);
        assert_eq!(admin.listed(&format!("/v2/p/{list}?all_tenants=1&project_id=r")), [""; 0]);
        assert_eq!(admin.listed(&format!("/v2/p/{list}?all_tenants=1&status=available")), [share(2)]);
        assert_eq!(member.listed(&format!("/v2/p/{list}?all_tenants=1&project_id=q")), [share(1), share(2)]);
        assert_eq!(member.listed(&format!("/v2/p/{list}?name=x")), [""; 0]);
    }
    assert_eq!(member.listed(&format!("/v2/p/shares?marker={}", share(1))), [share(2)]);
    member.get(&format!("/v2/p/shares?marker={}", share(3))).refused(400);
}

#[test]
fn a_request_is_looked_at_in_the_order_of_the_share_api() {
    let (_cluster, front) = with_token_file();
    let tokens = ["reader", "member", "nobody"].map(token);
    let [reader, member, nobody] = [0, 1, 2].map(|n: usize| As(&front, &tokens[n]));
    // Everything is wrong at first; then what was refused is right.
    nobody.act("q", "x", "{").refused(401);
    assert_eq!(reader.act("q", "x", "{").refused(400), "Malformed request body");
    assert_eq!(reader.act("q", "x", "{\"os-foo\": 1}").refused(400), "There is no such action: os-foo");
    assert_eq!(reader.act("q", "x", "{\"extend\": 1}").refused(400), "Malformed request url");
    assert!(reader.act("p", "x", "{\"extend\": 1}").refused(400).ends_with("1 is not of type 'object'"));
    reader.extend("p", "x", 1).refused(403);
    member.extend("p", "x", 1).refused(404);
    member.extend("p", &share(3), 1).refused(404);
    member.extend("p", &share(1), 3).accepted();
    member.extend("p", &share(1), 1).refused(409);
    member.extend("p", &share(2), 1).refused(400);
}

#[test]
fn keystone_is_asked_and_believed_for_a_while() {
    let cluster = two_nodes();
    let keystone = IdentityService::start("secret");
    let password = cluster.dir.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let hour = Duration::from_secs(3600);
    for (name, project, role) in
        [("m", "p", "member"), ("r", "p", "reader"), ("o", "q", "member"), ("x", "p", "observer"), ("a", "p", "admin")]
    {
        keystone.give(name, project, role, hour);
    }
    keystone.give("old", "p", "member", Duration::ZERO);
    let identity = format!(
        "[identity]\nkind = \"keystone\"\nauth_url = \"http://{}\"\nusername = \"growapi\"\npassword_file = \"{}\"\ncache = \"3s\"\n",
        keystone.address,
        password.display()
    );
    let front = Front::start(cluster.dir.path(), &format!("{identity}{}{OWNERS}", cluster.config()));
    let path = format!("/v2/p/shares/{}", share(1));

    for (token, status) in [
        ("m", 200),
        ("r", 200),
        ("a", 200),
        ("x", 403),
        ("o", 400),
        ("old", 401),
        ("none", 401),
        ("", 401),
        ("\u{e4}", 401),
    ] {
        assert_eq!(As(&front, token).get(&path).status, status, "{token}");
    }
    let refused = front.get(&path);
    refused.refused(401);
    let uri = format!("Keystone uri=\"http://{}/v3\"", keystone.address);
    assert_eq!(refused.header("www-authenticate"), Some(uri.as_str()));
    As(&front, "r").extend("p", &share(1), 3).refused(403);
    As(&front, "m").extend("p", &share(1), 3).accepted();

    // What is remembered costs no question and outlives a revocation for a while; what expires does not.
    keystone.give("brief", "p", "member", Duration::from_secs(5));
    assert_eq!(As(&front, "brief").get(&path).status, 200);
    let (asked, begun) = (keystone.with(|state| state.validations), Instant::now());
    (0..10).for_each(|_| assert_eq!(As(&front, "a").get(&path).status, 200));
    let times = 1 + usize::try_from(begun.elapsed().as_secs() / 3).unwrap();
    assert!(keystone.with(|state| state.validations) <= asked + times);
    keystone.with(|state| state.tokens.remove("m"));
    until(|| As(&front, "m").get(&path).status, |status| *status == 401);
    until(|| As(&front, "brief").get(&path).status, |status| *status == 401);

    // The token of growapi itself is renewed, once.
    let logins = keystone.with(|state| {
        state.tokens.retain(|token, _| !token.starts_with("service-"));
        state.logins
    });
    keystone.give("new", "p", "member", hour);
    assert_eq!(As(&front, "new").get(&path).status, 200);
    assert_eq!(keystone.with(|state| state.logins), logins + 1);

    keystone.with(|state| state.broken = true);
    let answer = As(&front, "unheard").get(&path);
    answer.refused(503);
    assert!(answer.header("retry-after").is_some());
    keystone.with(|state| {
        state.broken = false;
        state.password = "changed".to_owned();
        state.tokens.retain(|token, _| !token.starts_with("service-"));
    });
    As(&front, "unheard").get(&path).refused(503);
    std::fs::write(&password, "changed").unwrap();
    front.reload(cluster.dir.path(), &format!("{identity}{}{OWNERS}", cluster.config()));
    until(|| As(&front, "unheard").get(&path).status, |status| *status == 401);
}

#[test]
fn a_configuration_whose_files_are_wrong_is_refused() {
    let cluster = two_nodes();
    let check = |identity: &str| {
        let config = cluster.dir.path().join("check.toml");
        std::fs::write(&config, format!("[identity]\n{identity}\n{}{OWNERS}", cluster.config())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_growapi"));
        // Of a system without certificates.
        command.envs([("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")]);
        let output = command.arg("check-config").arg("--config").arg(&config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let tokens = cluster.dir.path().join("tokens");
    let identity = format!("kind = \"token-file\"\ntoken_file = \"{}\"", tokens.display());
    let (code, problem) = check(&identity);
    assert!(code == Some(1) && problem.contains("cannot read"), "{problem}");
    std::fs::write(&tokens, "secret p member\n").unwrap();
    let (code, problem) = check(&identity);
    assert!(code == Some(1) && problem.contains("tokens:1: the hash is not 64 hexadecimal digits"), "{problem}");
    std::fs::write(&tokens, format!("{} p member\n", "0".repeat(64))).unwrap();
    assert_eq!(check(&identity), (Some(0), String::new()));
    // Its password may be in any file.
    let keystone = |scheme: &str| {
        let user = format!("username = \"growapi\"\npassword_file = \"{}\"", tokens.display());
        check(&format!("kind = \"keystone\"\nauth_url = \"{scheme}://k\"\n{user}"))
    };
    assert_eq!(keystone("http"), (Some(0), String::new()));
    let (code, problem) = keystone("https");
    assert!(code == Some(1) && problem.contains("cannot read the system's certificates"), "{problem}");
    let (code, problem) = check("kind = \"none\"\ntoken_file = \"/t\"");
    assert!(code == Some(1) && problem.contains("3:1: identity of kind none has no key \"token_file\""), "{problem}");
}

#[test]
fn what_a_place_says_bounds_what_is_seen_before_all_owners() {
    let (cluster, front) = with_token_file();
    let tokens = ["member", "admin", "other"].map(token);
    let [member, admin, other] = [0, 1, 2].map(|n: usize| As(&front, &tokens[n]));
    // Pools of p and of nobody, and places that say q.
    cluster.nodes[0].hold_for("q", &share(5), "home", 2 * GIB);
    cluster.nodes[0].hold_for("q", &share(6), "places", 2 * GIB);
    cluster.nodes[0].hold_for("p", &share(7), "places", 2 * GIB);
    let path = |project: &str, n| format!("/v2/{project}/shares/{}", share(n));
    for n in [5, 6] {
        member.get(&path("p", n)).refused(404);
        member.extend("p", &share(n), 3).refused(404);
        let shown = other.get(&path("q", n)).json();
        assert_eq!(shown["share"]["project_id"], "q");
        other.get(&path("p", n)).refused(400);
    }
    assert_eq!(member.listed("/v2/p/shares"), [share(1), share(7), share(2)]);
    assert_eq!(other.listed("/v2/q/shares"), [share(5), share(6), share(3)]);
    assert_eq!(other.listed(&format!("/v2/q/shares?limit=1&marker={}", share(5))), [share(6)]);
    assert_eq!(other.listed(&format!("/v2/q/shares?limit=1&marker={}", share(6))), [share(3)]);
    other.get(&format!("/v2/q/shares?marker={}", share(7))).refused(400);
    assert_eq!(admin.listed("/v2/p/shares?all_tenants=1").len(), 7);

    other.extend("q", &share(5), 3).accepted();
    other.act("q", &share(6), "{\"os-shrink\": {\"new_size\": 1}}").accepted();
    // An admin's project is not the share's; the node is asked for the share's.
    admin.extend("p", &share(6), 4).refused(409);
    admin.extend("p", &share(7), 3).accepted();
    let asked = cluster.nodes[0].with(|state| state.extends.last().unwrap().clone());
    assert_eq!(asked.project_id, "p");

    // A share that goes from one project to another does so for both at once.
    cluster.nodes[0].with(|state| "q".clone_into(&mut state.shares.get_mut(&share(7)).unwrap().project_id));
    member.extend("p", &share(7), 5).refused(404);
    cluster.nodes[0].with(|state| "p".clone_into(&mut state.shares.get_mut(&share(7)).unwrap().project_id));
    member.extend("p", &share(7), 5).refused(409);

    // What growd says of a share is for whoever is known to own it; of others only the status is told, or nothing at all.
    // Where another place has it too is for nobody.
    let words = "refused with UNSUPPORTED";
    let refuse = |code, reason, http| {
        let places = [("place", "at /srv/p".to_owned()), ("other_place", "at /srv/q".to_owned())];
        cluster.nodes[0].with(|state| state.refusing_looks = Some(refusal(code, reason, http, &places)));
    };
    refuse(Code::Unimplemented, "UNSUPPORTED", 501);
    let twice = "The storage node has the share in two places, and nothing tells which of them is meant.";
    assert_eq!(member.get(&path("p", 7)).refused(501), twice);
    other.get(&path("q", 7)).refused(404);
    other.extend("q", &share(7), 5).refused(404);
    // Only what may pass by itself is asked for again.
    for (code, reason, http, status) in
        [(Code::Unimplemented, "UNSUPPORTED", 501, 501), (Code::FailedPrecondition, "NOT_MOUNTED", 409, 503)]
    {
        refuse(code, reason, http);
        for answer in [other.get(&path("q", 9)), other.extend("q", &share(9), 5), admin.get(&path("p", 9))] {
            assert_eq!(answer.refused(status), "The storage node cannot tell of the share.");
            assert_eq!(answer.header("retry-after").is_some(), status == 503, "{answer:?}");
        }
    }
    let line = format!("node=\"n00\" reason=\"UNSUPPORTED\" problem=\"{words}\"");
    until(|| front.has_logged(&line), |is| *is);
    cluster.nodes[0].with(|state| state.refusing_looks = None);

    // A pool that cannot be read is its owner's, and an admin's.
    cluster.nodes[0].with(|state| state.unreadable_pools.push("home".to_owned()));
    let pools = |list: Answer| list.header("warning").is_some_and(|text| text.contains("of 1 pools that cannot"));
    assert!(pools(member.get("/v2/p/shares")) && pools(admin.get("/v2/p/shares?all_tenants=1")));
    assert_eq!(other.get("/v2/q/shares").header("warning"), None);
    assert!(pools(admin.get("/v2/p/shares?all_tenants=1&project_id=p")));
    assert!(!pools(admin.get("/v2/p/shares?all_tenants=1&project_id=q")));
}

#[test]
fn what_goes_to_a_pool_of_another_owner_is_no_longer_the_old_owners() {
    let (cluster, front) = with_token_file();
    let tokens = ["member", "admin", "other"].map(token);
    let [member, admin, other] = [0, 1, 2].map(|n: usize| As(&front, &tokens[n]));
    let node = &cluster.nodes[1];
    let work = |n| node.with(|state| "work".clone_into(&mut state.shares.get_mut(&share(n)).unwrap().pool));
    // Both are known to be in a pool of p: one from a look at it, the other from a list.
    node.hold(&share(5), "home", 2 * GIB);
    member.extend("p", &share(2), 3).accepted();
    node.finish(&share(2));
    assert_eq!(member.listed("/v2/p/shares"), [1, 2, 5].map(share));
    for (n, action) in [(2, "{\"os-shrink\": {\"new_size\": 2}}"), (5, "{\"os-extend\": {\"new_size\": 4}}")] {
        work(n);
        assert_eq!(member.act("p", &share(n), action).refused(404), "Resource could not be found.");
    }
    assert_eq!(node.with(|state| (state.extends.len(), state.shrinks.len())), (1, 0));
    other.extend("q", &share(2), 4).accepted();
    admin.extend("p", &share(5), 4).accepted();
}
