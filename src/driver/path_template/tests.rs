//! Templates as they are written, the places that they give, and which of them meet.

use super::*;
use proptest::prelude::*;

const ID: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";

fn template(text: &str) -> PathTemplate {
    text.parse().unwrap()
}

#[test]
fn gives_places_and_finds_them_again() {
    let share: ShareId = ID.parse().unwrap();
    for (text, directory, relative) in [
        ("/srv/shares/{share_id}", "/srv/shares", ID.to_owned()),
        ("/srv/share-{share_id}.d", "/srv", format!("share-{ID}.d")),
        ("/srv/{share_id}/data/export", "/srv", format!("{ID}/data/export")),
        ("/{share_id}", "/", ID.to_owned()),
    ] {
        let template = template(text);
        assert_eq!(template.to_string(), text);
        assert_eq!(template.directory(), Path::new(directory));
        // As text, since paths with and without a last slash count as equal.
        assert_eq!(template.relative_of(share).to_str(), Some(relative.as_str()));
        assert!(!template.has_projects());
        let path = template.path_of(&ProjectLabel::default(), share);
        assert_eq!(path, Path::new(directory).join(&relative));
        assert_eq!(path.to_str(), Some(text.replace(PLACEHOLDER, ID).as_str()));
        let entry = relative.split('/').next().unwrap();
        assert_eq!(template.share_of(OsStr::new(entry)), Some(share));
    }
}

#[test]
fn a_place_may_say_the_project() {
    let share: ShareId = ID.parse().unwrap();
    let project: ProjectLabel = "b1c5e0d2a3f44d8f9d0f6a1be2c3d4e5".parse().unwrap();
    for (text, directory, below) in [
        ("/srv/{project_id}/{share_id}", "/srv", ""),
        ("/{project_id}/shares/{share_id}.img", "/", "/shares"),
        ("/srv/a/{project_id}/b/c/s-{share_id}/data", "/srv/a", "/b/c"),
    ] {
        let template = template(text);
        assert_eq!((template.to_string().as_str(), template.has_projects()), (text, true));
        assert_eq!(template.directory(), Path::new(directory));
        assert_eq!(template.folder_of(&project).to_str(), Some(format!("{}{below}", project.as_str()).as_str()));
        let path = text.replace(PROJECT, project.as_str()).replace(PLACEHOLDER, ID);
        assert_eq!(template.path_of(&project, share).to_str(), Some(path.as_str()));
        assert_eq!(template.project_of(OsStr::new(project.as_str())), Some(project.clone()));
    }
    let template = template("/srv/{project_id}/{share_id}");
    for stranger in ["", ".", "..", ".snapshots", "lost+found", "a b", "a/b", "{project_id}", "\u{fc}"] {
        assert_eq!(template.project_of(OsStr::new(stranger)), None, "{stranger}");
    }
    assert_eq!(super::tests::template("/srv/{share_id}").project_of(OsStr::new("p")), None);
}

#[test]
fn strangers_are_no_shares() {
    let plain = template("/srv/{share_id}");
    for name in ["", "lost+found", "6d0ad3f47c5e4c0e9a3e0c2d2f7c9a11", &ID.to_uppercase(), &format!("{ID}x")] {
        assert_eq!(plain.share_of(OsStr::new(name)), None, "{name}");
    }
    let affixed = template("/srv/a-{share_id}-a");
    for name in [ID, "a-a", "a--a", &format!("a-{ID}"), &format!("{ID}-a")] {
        assert_eq!(affixed.share_of(OsStr::new(name)), None, "{name}");
    }
}

#[test]
fn says_what_is_wrong() {
    for (text, problem) in [
        ("srv/{share_id}", r#""srv/{share_id}" is not absolute: it must start with "/""#),
        ("", r#""" is not absolute: it must start with "/""#),
        ("/srv/../{share_id}", r#""/srv/../{share_id}" must not contain "..""#),
        ("/srv/./{share_id}/", r#""/srv/./{share_id}/" has an empty or "." component: write "/srv/{share_id}""#),
        ("/srv//{share_id}", r#""/srv//{share_id}" has an empty or "." component: write "/srv/{share_id}""#),
        ("/srv/{share_id}\0", r#""/srv/{share_id}\0" contains a control character"#),
        ("/srv/shares", r#""/srv/shares" does not say where the share's id goes: it needs {share_id} once"#),
        ("/srv/{shareid}", r#""/srv/{shareid}" does not say where the share's id goes: it needs {share_id} once"#),
        ("/{share_id}/{share_id}", r#""/{share_id}/{share_id}" contains {share_id} more than once"#),
        (
            "/{pool}/{share_id}",
            r#""/{pool}/{share_id}" contains a brace outside of {share_id} and, in paths, {project_id}, the only placeholders there are"#,
        ),
        (
            "/{pool}/{project_id}/{share_id}",
            r#""/{pool}/{project_id}/{share_id}" contains a brace outside of {share_id} and, in paths, {project_id}, the only placeholders there are"#,
        ),
    ] {
        assert_eq!(text.parse::<PathTemplate>().unwrap_err().to_string(), problem);
    }
    for text in [
        "/{share_id}/{project_id}",
        "/srv/{project_id}-{share_id}",
        "/srv/p-{project_id}/{share_id}",
        "/{project_id}/{project_id}/{share_id}",
    ] {
        let problem = "in a wrong place: it is a whole component, once, before the one with {share_id}";
        let said = text.parse::<PathTemplate>().unwrap_err().to_string();
        assert_eq!(said, format!("{text:?} has {{project_id}} {problem}"));
    }
    assert!("share-{project_id}-{share_id}".parse::<NameTemplate>().is_err());
}

#[test]
fn knows_which_places_meet() {
    let home = template("/srv/{share_id}");
    let inside_a_share = format!("/srv/{ID}/shares/{{share_id}}");
    for other in ["/srv/{share_id}", "/srv/{share_id}/data", inside_a_share.as_str()] {
        assert!(home.meets(&template(other)), "{other}");
        assert!(template(other).meets(&home), "{other}");
    }
    for other in ["/srv/a-{share_id}", "/srv/more/{share_id}", "/{share_id}", "/data/{share_id}"] {
        assert!(!home.meets(&template(other)), "{other}");
        assert!(!template(other).meets(&home), "{other}");
    }
    let projects = template("/srv/{project_id}/{share_id}");
    let of_one = format!("/srv/{ID}/{{share_id}}");
    for other in
        ["/srv/{share_id}", "/srv/p/{share_id}", "/srv/p/{project_id}/{share_id}", &of_one, "/{project_id}/{share_id}"]
    {
        // The last one: its project could be "srv", and its share a project's directory.
        assert!(projects.meets(&template(other)), "{other}");
        assert!(template(other).meets(&projects), "{other}");
    }
    for other in ["/srv/lost+found/{share_id}", "/srv/p/a-{share_id}", "/data/{project_id}/{share_id}"] {
        assert!(!projects.meets(&template(other)), "{other}");
        assert!(!template(other).meets(&projects), "{other}");
    }
    assert!(projects.meets_path(Path::new(&format!("/srv/p/{ID}"))));
    assert!(!projects.meets_path(Path::new("/srv/p/legacy")));
    for path in ["/", "/srv", &format!("/srv/{ID}"), &format!("/srv/{ID}/deep/er")] {
        assert!(home.meets_path(Path::new(path)), "{path}");
    }
    for path in ["/srv/legacy", "/data", "/srv2"] {
        assert!(!home.meets_path(Path::new(path)), "{path}");
    }
}

proptest! {
    #[test]
    fn never_panics_and_prints_what_it_read_of_names(text in "[{}a-z_.]{0,6}(\\{share_id\\})?[{}a-z_.]{0,6}") {
        if let Ok(template) = text.parse::<NameTemplate>() {
            prop_assert_eq!(template.to_string(), text);
        }
    }

    #[test]
    fn never_panics_and_prints_what_it_read(text in "/?[{}a-z_./]{0,6}(\\{project_id\\})?[{}a-z_./]{0,6}(\\{share_id\\})?[{}a-z_./]{0,12}") {
        if let Ok(template) = text.parse::<PathTemplate>() {
            prop_assert_eq!(template.to_string(), text);
        }
    }
}
