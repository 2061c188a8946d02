//! sled's flush must end in growd's own sync_file_range in a program that links growd as a library, as the daemon does.

#[test]
fn a_flush_of_sled_is_redirected() {
    let directory = tempfile::tempdir().unwrap();
    let before = growd::sys::sync_file_range::redirected_calls();
    let db = sled::open(directory.path()).unwrap();
    db.insert("key", "value").unwrap();
    db.flush().unwrap();
    assert!(growd::sys::sync_file_range::redirected_calls() > before);
}
