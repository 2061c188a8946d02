//! What `growctl doctor` tells of findings, and of very many.

use crate::canned::*;
use growd::wire::proto::*;

#[test]
fn doctor_exits_1_when_there_is_a_finding() {
    let fixture = Fixture::new();
    fixture.script(|script| {
        script.findings = vec![Finding {
            kind: "NO_PROJECT_ID".to_owned(),
            pool: "home".to_owned(),
            share_id: SHARE.to_owned(),
            message: "project id is 0".to_owned(),
            remedy: "xfs_quota ...".to_owned(),
        }];
        script.commands = vec![HostCommand {
            command: "lvs vg0".to_owned(),
            started_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            finished_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 20_000_000 }),
            outcome: "done".to_owned(),
            output: "no such group".to_owned(),
        }];
    });
    let ran = fixture.run(&["doctor"]).exits(1);
    let text = format!("NO_PROJECT_ID  pool home  share {SHARE}\n  project id is 0\n  remedy: xfs_quota ...\n");
    let commands = "\nlast commands:\n\
                    STARTED               TOOK  OUTCOME  COMMAND  OUTPUT\n\
                    2023-11-14T22:13:20Z  20ms  done     lvs vg0  no such group\n";
    assert_eq!((ran.out, ran.err.as_str()), (text + commands, ""));
    let json = fixture.run(&["doctor", "-o", "json"]).exits(1);
    assert_eq!(json.json()["findings"][0]["kind"], "NO_PROJECT_ID");
}

/// As after a restore that has lost the project ids of a whole tree.
#[test]
fn findings_of_very_many_shares_are_all_told() {
    let fixture = Fixture::new();
    let location = format!("/srv/shares/{SHARE}");
    let finding = Finding {
        kind: "NO_PROJECT_ID".to_owned(),
        pool: "home".to_owned(),
        share_id: SHARE.to_owned(),
        message: format!("{location} does not have a project id of its own"),
        remedy: format!("give it one: xfs_quota -x -c 'project -s -p {location} ID' /srv, then set its limit"),
    };
    fixture.script(|script| script.findings = vec![finding; 20_000]);
    let table = fixture.run(&["doctor"]).exits(1);
    assert!(table.err.is_empty(), "{}", table.err);
    assert_eq!(table.out.matches("NO_PROJECT_ID").count(), 20_000);
}
