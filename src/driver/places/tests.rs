//! Shares in the folders of projects, and what leads nowhere.

use super::*;
use crate::model::Reason;
use nix::sys::stat::fstat;
use std::fs;
use std::os::unix::fs::symlink;

const GROUND: Ground = Ground {
    way: DIRECTORY,
    what: "file system",
    is_there: |_| Ok(true),
    turn_on: |_| None,
    holds: |pool, fd| Ok(fstat(fd)?.st_dev == pool.device),
};

fn share(n: u128) -> ShareId {
    ShareId::from_uuid(uuid::Uuid::from_u128(n))
}

fn label(text: &str) -> ProjectLabel {
    text.parse().unwrap()
}

/// A pool with projects a and b in a directory of its own, and share 9 in another place.
fn projects() -> (tempfile::TempDir, PathBuf, Places) {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().canonicalize().unwrap();
    for (project, n) in [("a", 1), ("a", 2), ("b", 3)] {
        fs::create_dir_all(root.join(format!("pool/{project}/{}", share(n)))).unwrap();
    }
    fs::create_dir(root.join("legacy")).unwrap();
    let template = root.join("pool/{project_id}/{share_id}").to_str().unwrap().parse().unwrap();
    let places = Places::new(GROUND, "home".parse().unwrap(), template, vec![(share(9), root.join("legacy"))]);
    (temporary, root, places)
}

fn reason(places: &Places, n: u128) -> Result<(String, PathBuf), Reason> {
    let opened = places.open_share(&places.open_pool().unwrap(), share(n));
    let opened = opened.map_err(|error| error.into_refusal().reason())?;
    Ok((opened.project.as_str().to_owned(), opened.path))
}

#[test]
fn a_share_is_found_in_the_folder_of_its_project_and_again_when_it_has_moved() {
    let (_temporary, root, places) = projects();
    let at = |project: &str, n| (project.to_owned(), root.join(format!("pool/{project}/{}", share(n))));
    for _ in 0..2 {
        assert_eq!(reason(&places, 1), Ok(at("a", 1)));
        assert_eq!(reason(&places, 3), Ok(at("b", 3)));
        assert_eq!(reason(&places, 9), Ok((String::new(), root.join("legacy"))));
        assert_eq!(reason(&places, 4), Err(Reason::ShareNotFound));
    }
    fs::rename(at("a", 1).1, at("b", 1).1).unwrap();
    assert_eq!(reason(&places, 1), Ok(at("b", 1)));
    fs::remove_dir(at("b", 1).1).unwrap();
    assert_eq!(reason(&places, 1), Err(Reason::ShareNotFound));

    let pool = places.open_pool().unwrap();
    let listed = |shares: Shares| shares.iter().map(|id| id.as_uuid().as_u128()).collect::<Vec<_>>();
    assert_eq!(listed(places.list(&pool).unwrap()), [2, 3, 9]);
    let of = |project| listed(places.list_of(&pool, Some(&label(project))).unwrap());
    assert_eq!((of("a"), of("b"), of("c"), of("")), (vec![2], vec![3], vec![], vec![9]));
    assert_eq!((of(".."), of("a/.."), of(".")), (vec![], vec![], vec![]));
    assert_eq!(places.known.lock().len(), 2, "what is gone is known no more");
}

/// A caller who saw no share would take them for deleted.
#[test]
fn a_pool_that_may_not_be_mounted_has_no_list_for_anybody() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().canonicalize().unwrap();
    fs::create_dir(root.join("legacy")).unwrap();
    let ground = || Ground { is_there: |_| Ok(false), ..GROUND };
    let places = |template: &str| {
        let template = root.join(template).to_str().unwrap().parse().unwrap();
        Places::new(ground(), "home".parse().unwrap(), template, vec![(share(9), root.join("legacy"))])
    };
    let with_projects = places("{project_id}/{share_id}");
    let reason = |places: &Places, project: Option<&str>| {
        let pool = places.open_pool().unwrap();
        let listed = places.list_of(&pool, project.map(label).as_ref());
        listed.map_err(|error| error.into_refusal().reason())
    };
    for project in [None, Some(""), Some("p")] {
        assert_eq!(reason(&with_projects, project), Err(Reason::NotMounted), "{project:?}");
    }
    let without = places("{share_id}");
    assert_eq!(reason(&without, Some("")), Err(Reason::NotMounted));
    assert_eq!(reason(&without, Some("p")), Ok(Shares::from([])), "it has none of a project, mounted or not");
    // A share shows that it is there, and that its quotas are off.
    fs::create_dir_all(root.join(format!("q/{}", share(1)))).unwrap();
    assert_eq!(reason(&with_projects, Some("q")), Ok(Shares::from([share(1)])));
    assert_eq!(reason(&with_projects, Some("p")), Ok(Shares::from([])));
    assert_eq!(reason(&with_projects, Some("")), Ok(Shares::from([share(9)])));
}

#[test]
fn a_share_that_two_projects_have_is_neithers() {
    let (_temporary, root, places) = projects();
    assert!(reason(&places, 1).is_ok());
    fs::create_dir(root.join(format!("pool/b/{}", share(1)))).unwrap();
    assert_eq!(reason(&places, 1).map(|(project, _)| project), Ok("a".to_owned()), "it had it first");
    places.list(&places.open_pool().unwrap()).unwrap();
    assert_eq!(reason(&places, 1), Err(Reason::Unsupported));
    fs::remove_dir(root.join(format!("pool/a/{}", share(1)))).unwrap();
    assert_eq!(reason(&places, 1).map(|(project, _)| project), Ok("b".to_owned()));
}

#[test]
fn what_could_not_be_opened_for_want_of_files_is_not_taken_for_missing() {
    let (_temporary, root, _) = projects();
    let opened = |holds: fn(&PoolDirectory, BorrowedFd<'_>) -> Result<bool, Errno>| {
        let template = root.join("pool/{share_id}").to_str().unwrap().parse().unwrap();
        let explicit = vec![(share(9), root.join("legacy"))];
        let places = Places::new(Ground { holds, ..GROUND }, "home".parse().unwrap(), template, explicit);
        places.try_open(&places.open_pool().unwrap(), share(9), DIRECTORY).map(|opened| opened.is_some())
    };
    assert!(opened(|_, _| Ok(true)).unwrap());
    assert!(!opened(|_, _| Ok(false)).unwrap());
    assert!(!opened(|_, _| Err(Errno::EIO)).unwrap());
    assert!(opened(|_, _| Err(Errno::EMFILE)).is_err());
}

#[test]
fn no_link_leads_anywhere() {
    let (_temporary, root, places) = projects();
    fs::create_dir_all(root.join(format!("outside/{}", share(5)))).unwrap();
    symlink("../outside", root.join("pool/c")).unwrap();
    symlink("a", root.join("pool/d")).unwrap();
    fs::write(root.join("pool/e"), "").unwrap();
    symlink(share(3).to_string(), root.join(format!("pool/b/{}", share(6)))).unwrap();
    let pool = places.open_pool().unwrap();
    assert_eq!(reason(&places, 5), Err(Reason::ShareNotFound));
    assert_eq!(reason(&places, 6), Err(Reason::Unsupported));
    assert_eq!(reason(&places, 1).map(|(project, _)| project), Ok("a".to_owned()));
    for project in ["c", "d", "e"] {
        assert_eq!(places.list_of(&pool, Some(&label(project))).unwrap(), Shares::from([]), "{project}");
    }
    assert!(!places.list(&pool).unwrap().contains(&share(5)));
    // The folder that is known becomes a link.
    fs::rename(root.join("pool/a"), root.join("aside")).unwrap();
    symlink("../aside", root.join("pool/a")).unwrap();
    assert_eq!(reason(&places, 1), Err(Reason::ShareNotFound));
}
