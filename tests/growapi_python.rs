//! The real growapi and Python programs on this machine, in front of simulated nodes: a real Keystone validates tokens, and
//! schemathesis holds growapi to the document that it serves.

// A test that cannot set itself up has nothing to report but where it stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/front.rs"]
mod front;
#[path = "support/seed.rs"]
mod seed;
#[path = "growapi/simulated.rs"]
mod simulated;
#[path = "support/venv.rs"]
mod venv;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use front::{Answer, Front, JSON, NOBODY, until};
use seed::Random;
use serde_json::Value;
use simulated::{Cluster, GIB, Mood, refusal, share};
use tonic::Code;

/// Keystone from its Python package, with sqlite and fernet tokens. It ends when its input does.
struct Keystone {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    told: Value,
}

impl Keystone {
    fn start(dir: &std::path::Path) -> Self {
        std::fs::create_dir(dir).unwrap();
        let mut python = venv::program("python");
        python.arg(venv::file("real_keystone.py")).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut keystone = Self { child, input, output, told: Value::Null };
        let line = keystone.line();
        keystone.told = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        keystone
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn text(&self, name: &str) -> &str {
        self.told[name].as_str().unwrap()
    }

    fn token(&self, name: &str) -> String {
        self.told["tokens"][name].as_str().unwrap().to_owned()
    }

    fn revoke(&mut self, name: &str) {
        writeln!(self.input.as_mut().unwrap(), "{name}").unwrap();
        assert_eq!(self.line(), "revoked\n");
    }
}

impl Drop for Keystone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_keystone_tells_who_asks() {
    let cluster = Cluster::new(1);
    cluster.nodes[0].hold(&share(1), "home", 2 * GIB);
    cluster.nodes[0].hold(&share(2), "work", 2 * GIB);
    let mut keystone = Keystone::start(&cluster.dir.path().join("keystone"));
    let (mine, other) = (keystone.text("mine").to_owned(), keystone.text("other").to_owned());
    let password = cluster.dir.path().join("password");
    std::fs::write(&password, "growapi\n").unwrap();
    let owners = format!(
        "[[owner]]\nproject = \"{mine}\"\npool = \"home\"\n[[owner]]\nproject = \"{other}\"\npool = \"work\"\n"
    );
    let identity = format!(
        "[identity]\nkind = \"keystone\"\nauth_url = \"{}\"\nusername = \"growapi\"\npassword_file = \"{}\"\ncache = \"1s\"\n",
        keystone.text("url"),
        password.display(),
    );
    let front = Front::start(cluster.dir.path(), &format!("{identity}{}{owners}", cluster.config()));
    let get = |token: &str, project: &str, n| -> Answer {
        front.ask("GET", &format!("/v2/{project}/shares/{}", share(n)), &[("X-Auth-Token", token)], &[])
    };
    let extend = |token: &str, project: &str, n| {
        let path = format!("/v2/{project}/shares/{}/action", share(n));
        front.ask("POST", &path, &[JSON, ("X-Auth-Token", token)], b"{\"os-extend\": {\"new_size\": 3}}")
    };
    let [member, revoked, reader, stranger, expired] =
        ["member", "revoked", "reader", "stranger", "expired"].map(|name| keystone.token(name));

    let shown = get(&member, &mine, 1);
    assert_eq!((shown.status, &shown.json()["share"]["project_id"]), (200, &mine.as_str().into()));
    front.get(&format!("/v2/{mine}/shares/{}", share(1))).refused(401);
    for wrong in ["wrong", &member[1..], &format!("{member}x"), &member.to_uppercase()] {
        let answer = get(wrong, &mine, 1);
        assert_eq!(answer.refused(401), "The request you have made requires authentication.");
        let challenge = format!("Keystone uri=\"{}\"", keystone.text("url"));
        assert_eq!(answer.header("www-authenticate"), Some(challenge.as_str()));
    }
    // It was given for one second.
    until(|| get(&expired, &mine, 1).status, |status| *status == 401);

    assert_eq!(get(&revoked, &mine, 1).status, 200);
    keystone.revoke("revoked");
    until(|| get(&revoked, &mine, 1).status, |status| *status == 401);

    assert_eq!(get(&reader, &mine, 1).status, 200);
    assert_eq!(extend(&reader, &mine, 1).refused(403), "Access was denied to this resource.");
    assert_eq!(get(&stranger, &mine, 1).refused(400), "Malformed request url");
    extend(&stranger, &other, 1).refused(404);
    extend(&stranger, &other, 2).accepted();
    extend(&member, &mine, 2).refused(404);
    extend(&member, &mine, 1).accepted();
}

#[test]
fn openstack_lists_what_it_looks_for_and_hears_why_a_share_without_a_size_gets_none() {
    let cluster = Cluster::new(1);
    (1..=3).for_each(|n| cluster.nodes[0].hold(&share(n), "home", 2 * GIB));
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    let endpoint = format!("http://{}/v2/p", front.address);
    let openstack = |words: &[&str]| {
        let mut command = venv::program("openstack");
        command.args(["--os-auth-type", "none", "--os-endpoint", &endpoint, "share"]).args(words);
        command
    };
    let listed = |filter: &[&str]| {
        let text = venv::printed(openstack(&["list", "-f", "value", "-c", "ID"]).args(filter));
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(listed(&[]), [1, 2, 3].map(share));
    for filter in [&["--property", "a=b"][..], &["--soft-deleted"]] {
        assert_eq!(listed(filter), [""; 0], "{filter:?}");
    }
    let pages = "import openstack, sys\n\
        cloud = openstack.connect(auth_type='none', endpoint=sys.argv[1], load_yaml_config=False, load_envvars=False)\n\
        print(*(share.id for share in cloud.share.shares(limit=2)))";
    let paged = venv::printed(venv::program("python").args(["-c", pages, &endpoint]));
    assert_eq!(paged.trim(), [1, 2, 3].map(share).join(" "));

    cluster.nodes[0].with(|state| {
        state.shares.get_mut(&share(1)).unwrap().size_bytes = None;
        state.mood = Mood::Refusing(refusal(Code::FailedPrecondition, "UNLIMITED", 409, &[]));
    });
    let output = openstack(&["resize", &share(1), "3"]).output().unwrap();
    let said = venv::said(&output);
    assert!(!output.status.success() && said.contains("The share has no limit"), "{said}");
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let cluster = Cluster::new(2);
    (1..=3).for_each(|n| cluster.nodes[n % 2].hold(&share(n), "home", 2 * GIB));
    let front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    // A number that Python takes, and that is not long to type.
    let seed = (Random::from_environment().number() >> 32).to_string();
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                  response_schema_conformance,unsupported_method,allow_header_conformance";
    // A share that cannot be made smaller is answered with 501, as the document says.
    let config = "[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"3xx\", \"4xx\", 501]\n";
    std::fs::write(cluster.dir.path().join("schemathesis.toml"), config).unwrap();
    let mut command = venv::program("schemathesis");
    command.current_dir(cluster.dir.path()).arg("run").arg(format!("http://{}/openapi.json", front.address));
    command.args(["--no-color", "--max-examples", "30", "--seed", &seed, "--checks", checks]);
    let output = command.output().unwrap();
    let said = venv::said(&output);
    assert!(output.status.success(), "{said}");
    // A run that tested nothing succeeds too.
    assert!(front.get("/").status == 200 && cluster.calls() > 30, "{said}");
}
