//! How much of the system the services are open to, as `systemd-analyze security` scores it: 0 is nothing, 10 is all.

use std::process::Command;

/// What is open beyond this has no reason that docs/limits.md tells.
const MOST: [(&str, f64); 2] = [("growd.service", 1.8), ("growapi.service", 1.7)];

#[test]
fn the_exposure_of_the_units_is_low() {
    for (unit, most) in MOST {
        let path = format!("{}/systemd/{unit}", env!("CARGO_MANIFEST_DIR"));
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager", &path])
            .env("LC_ALL", "C")
            .output()
            .expect("systemd-analyze of Debian's systemd package; `make deps` installs it");
        let report = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{report}{complaint}");
        // An option that is misspelt is ignored by systemd, with a word about it.
        assert!(!complaint.contains("Unknown key"), "{complaint}");
        let overall = report.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default();
        let score: f64 =
            overall.split(':').nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().parse().unwrap();
        println!("exposure of {unit}: {score} (at most {most})");
        for open in report.lines().filter(|line| line.contains('✗')) {
            println!("open: {}", open.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
        }
        assert!(score > 0.0 && score <= most, "{report}");
    }
}
